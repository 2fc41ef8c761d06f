#include "base/util.h"
#include "fuzz/play.h"
#include "gpu/memfd.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { A, B, C, TENSORS };

#define SHORT_BYTES 4096

static const struct tensor tensors[TENSORS] = {
	{.name = "a", .dtype = STREW_F32, .ndim = 2, .shape = {16, 8}},
	{.name = "b", .dtype = STREW_BF16, .ndim = 1, .shape = {40}},
	{.name = "c", .dtype = STREW_F32, .ndim = 2, .shape = {200, 150}},
};
static const uint64_t offsets[TENSORS] = {0, 1024, 4096};

static struct blob blobs[SAID_BLOBS];
static int fds[FD_KINDS];
static uint8_t *trainer_memory, *worker_memory;

static size_t last_byte(void)
{
	return offsets[C] + 200 * 150 * sizeof(float);
}

static void add_piece(struct layout *layout, unsigned number, uint64_t first, uint64_t rows,
	enum strew_dtype dtype, uint64_t pitch)
{
	const struct tensor *tensor = &tensors[number];
	struct parameter parameter = {.name = tensor->name,
		.offset_bytes = offsets[number],
		.dtype = dtype,
		.ndim = tensor->ndim,
		.shape = {rows, tensor->shape[1]},
		.stride = {pitch, 1}};
	struct piece piece = {.ndim = tensor->ndim,
		.view = {tensor->shape[0], tensor->shape[1]},
		.box = {{first, 0}, {rows, tensor->shape[1]}},
		.stride = {pitch, 1},
		.cast = dtype != tensor->dtype};
	struct error err;

	CLAIM(layout_add_tensor(layout, tensor, &piece.tensor, &err) == 0);
	CLAIM(layout_add_parameter(layout, &parameter, &piece.parameter, &err) == 0);
	CLAIM(layout_add_piece(layout, &piece, &err) == 0);
}

static void make_layout(unsigned which)
{
	struct layout layout;
	struct error err;

	layout_init(&layout);
	if (which == SAID_LAYOUT) {
		add_piece(&layout, A, 0, 16, STREW_F32, 8);
		add_piece(&layout, B, 0, 40, STREW_BF16, 1);
		add_piece(&layout, C, 0, 200, STREW_F32, 150);
	} else if (which == SAID_LAYOUT_CAST) {
		add_piece(&layout, A, 3, 9, STREW_BF16, 11);
		add_piece(&layout, C, 50, 101, STREW_F16, 160);
	} else {
		add_piece(&layout, B, 7, 20, STREW_BF16, 1);
	}
	CLAIM(layout_seal(&layout, false, &err) == 0);
	CLAIM(blob_from_layout(&layout, &blobs[which], &err) == 0);
	layout_finish(&layout);
}

static void add_box(struct manifest *manifest, struct source *sources, unsigned number,
	uint32_t rank, uint64_t first, uint64_t rows)
{
	const struct tensor *tensor = &tensors[number];
	uint64_t pitch = tensor->ndim == 2 ? tensor->shape[1] : 1;
	struct held_box box = {.rank = rank, .box = {{first, 0}, {rows, tensor->shape[1]}}};
	struct error err;

	sources[manifest->nboxes] = (struct source){
		.offset_bytes = offsets[number] + first * pitch * strew_dtype_size(tensor->dtype),
		.stride = {pitch, 1}};
	CLAIM(manifest_add_tensor(manifest, tensor, &box.tensor, &err) == 0);
	CLAIM(manifest_add_box(manifest, &box, &err) == 0);
}

/* SAID_WHOLE, SAID_FIRST, SAID_SECOND, with their shares; the manifests of one rank and of both. */
static void make_declared(unsigned which)
{
	struct source sources[2 * TENSORS];
	struct manifest manifest;
	struct error err;

	manifest_init(&manifest);
	if (which == SAID_WHOLE || which == SAID_MANIFEST) {
		add_box(&manifest, sources, A, 0, 0, 16);
		add_box(&manifest, sources, B, 0, 0, 40);
		add_box(&manifest, sources, C, 0, 0, 200);
	}
	if (which == SAID_FIRST || which == SAID_MANIFEST_BOTH) {
		add_box(&manifest, sources, A, 0, 0, 10);
		add_box(&manifest, sources, C, 0, 0, 120);
	}
	if (which == SAID_SECOND || which == SAID_MANIFEST_BOTH) {
		add_box(&manifest, sources, A, 1, 8, 8);
		add_box(&manifest, sources, B, 1, 0, 40);
		add_box(&manifest, sources, C, 1, 120, 80);
	}
	if (which >= SAID_MANIFEST) {
		CLAIM(manifest_seal(&manifest, &err) == 0);
		CLAIM(blob_from_manifest(&manifest, NULL, &blobs[which], &err) == 0);
	} else {
		CLAIM(blob_from_manifest(&manifest, sources, &blobs[which], &err) == 0);
		CLAIM(blob_from_manifest(&manifest, NULL,
			      &blobs[which - SAID_WHOLE + SAID_SHARE_WHOLE], &err) == 0);
	}
	manifest_finish(&manifest);
}

static void make_fds(void)
{
	struct page page;
	struct error err;
	void *at;

	CLAIM(memfd_create_sealed("trainer", PLAY_MEMORY, &fds[FD_TRAINER]) == 0);
	CLAIM(memfd_create_sealed("worker", PLAY_MEMORY, &fds[FD_WORKER]) == 0);
	CLAIM(memfd_create_sealed("short", SHORT_BYTES, &fds[FD_SHORT]) == 0);
	fds[FD_UNSEALED] = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	CLAIM(fds[FD_UNSEALED] >= 0 && ftruncate(fds[FD_UNSEALED], PLAY_MEMORY) == 0);
	fds[FD_EVENT] = eventfd(0, EFD_CLOEXEC);
	CLAIM(page_create(&page, &err) == 0);
	fds[FD_PAGE] = page.fd;
	CLAIM(memfd_map(fds[FD_TRAINER], PLAY_MEMORY, true, &at, &err) == 0);
	trainer_memory = at;
	CLAIM(memfd_map(fds[FD_WORKER], PLAY_MEMORY, true, &at, &err) == 0);
	worker_memory = at;
	for (size_t i = 0; i < last_byte(); i++) {
		trainer_memory[i] = (uint8_t)(i * 7 + i / 251);
	}
}

static void forget_blobs(void)
{
	for (unsigned i = 0; i < SAID_BLOBS; i++) {
		blob_finish(&blobs[i]);
	}
}

const struct blob *play_blob(unsigned which)
{
	if (!trainer_memory) {
		make_fds();
		for (unsigned i = SAID_LAYOUT; i <= SAID_LAYOUT_PART; i++) {
			make_layout(i);
		}
		for (unsigned i = SAID_WHOLE; i <= SAID_SECOND; i++) {
			make_declared(i);
		}
		make_declared(SAID_MANIFEST);
		make_declared(SAID_MANIFEST_BOTH);
		atexit(forget_blobs);
	}
	return &blobs[which % SAID_BLOBS];
}

int play_fd(unsigned kind)
{
	int fd = fcntl(fds[kind % FD_KINDS], F_DUPFD_CLOEXEC, 0);

	CLAIM(fd >= 0);
	return fd;
}

void play_poison_memory(void)
{
	memset(worker_memory, 0xa5, last_byte() + 1);
}

bool play_memory_arrived(void)
{
	for (unsigned i = 0; i < TENSORS; i++) {
		if (memcmp(trainer_memory + offsets[i], worker_memory + offsets[i],
			    tensor_bytes(&tensors[i])) != 0) {
			return false;
		}
	}
	/* And nothing behind it. */
	return worker_memory[last_byte()] == 0xa5;
}
