#include "bench/disk.h"
#include "base/clock.h"
#include "base/util.h"
#include "bench/bench.h"
#include "bench/values.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define BLOCK_BYTES (16u << 20)
#define ALIGN 4096u
#define HEADER_LENGTH_BYTES 8

/* Tensors [first, first + count) in one shard. */
struct shard {
	size_t first, count;
	uint64_t data_bytes;
};

/* Work that threads take in turn. */
struct crowd {
	const struct shapes *shapes;
	const struct shard *shard;
	uint64_t seed, data_offset;
	const struct disk *disk;
	int *fds; /* one a file */
	atomic_uint_fast64_t next;
};

static void *buffer(void)
{
	void *bytes = NULL;

	if (posix_memalign(&bytes, ALIGN, BLOCK_BYTES)) {
		bench_fail(EXIT_RUNTIME, "out of memory");
	}
	return bytes;
}

static void run_crowd(struct crowd *crowd, void *(*run)(void *), unsigned nthreads)
{
	pthread_t threads[DISK_THREADS - 1];
	unsigned n = 0;

	atomic_store(&crowd->next, 0);
	while (n + 1 < nthreads && pthread_create(&threads[n], NULL, run, crowd) == 0) {
		n++;
	}
	run(crowd);
	while (n > 0) {
		pthread_join(threads[--n], NULL);
	}
}

static void write_all(int fd, const void *bytes, size_t len_bytes, uint64_t offset)
{
	size_t done = 0;

	while (done < len_bytes) {
		ssize_t n = pwrite(
			fd, (const char *)bytes + done, len_bytes - done, (off_t)(offset + done));

		if (n < 0 && errno != EINTR) {
			bench_fail(EXIT_RUNTIME, "writing the checkpoint: %s", strerror(errno));
		}
		done += n > 0 ? (size_t)n : 0;
	}
}

/* Blocks of the shard's tensors, counted through. */
static void *write_blocks(void *arg)
{
	struct crowd *crowd = arg;
	void *block = buffer();
	uint64_t before = 0, offset = crowd->data_offset; /* blocks and bytes before tensor i */
	uint64_t mine = atomic_fetch_add(&crowd->next, 1);

	for (size_t i = 0; i < crowd->shard->count; i++) {
		size_t index = crowd->shard->first + i;
		uint64_t bytes = shape_bytes(&crowd->shapes->tensors[index]);
		uint64_t blocks = (bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;

		while (mine < before + blocks) {
			uint64_t at = (mine - before) * BLOCK_BYTES;
			size_t len = MIN(bytes - at, BLOCK_BYTES);

			values_make(crowd->seed, (uint32_t)index, at, block, len);
			write_all(crowd->fds[0], block, len, offset + at);
			mine = atomic_fetch_add(&crowd->next, 1);
		}
		before += blocks;
		offset += bytes;
	}
	free(block);
	return NULL;
}

static void print_entry(FILE *file, const struct shape_tensor *tensor, uint64_t at, bool first)
{
	fprintf(file, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", first ? "{" : ",", tensor->name,
		tensor->dtype == STREW_F32 ? "F32" : "BF16");
	for (int d = 0; d < tensor->ndim; d++) {
		fprintf(file, "%s%llu", d ? "," : "", (unsigned long long)tensor->shape[d]);
	}
	fprintf(file, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
		(unsigned long long)(at + shape_bytes(tensor)));
}

/* Length and header; returns where the data begin. */
static uint64_t write_header(int fd, const struct shapes *shapes, const struct shard *shard)
{
	unsigned char length[HEADER_LENGTH_BYTES];
	char *text = NULL;
	size_t len = 0;
	FILE *file = bench_need(open_memstream(&text, &len));
	uint64_t at = 0;

	for (size_t i = 0; i < shard->count; i++) {
		const struct shape_tensor *tensor = &shapes->tensors[shard->first + i];

		if (tensor->dtype != STREW_F32 && tensor->dtype != STREW_BF16) {
			bench_fail(EXIT_RUNTIME, "%s: only f32 and bf16 are written", tensor->name);
		}
		print_entry(file, tensor, at, i == 0);
		at += shape_bytes(tensor);
	}
	fputc('}', file);
	fflush(file);
	fprintf(file, "%*s", (int)(align_up(len, 8) - len), "");
	fclose(file);
	for (int i = 0; i < HEADER_LENGTH_BYTES; i++) {
		length[i] = (unsigned char)((uint64_t)len >> 8 * i);
	}
	write_all(fd, length, sizeof(length), 0);
	write_all(fd, text, len, sizeof(length));
	free(text);
	return sizeof(length) + len;
}

static void write_shard(struct disk_file *file, const struct shapes *shapes,
	const struct shard *shard, uint64_t seed)
{
	int fd = open(file->path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	struct crowd crowd = {.shapes = shapes, .shard = shard, .seed = seed, .fds = &fd};

	if (fd < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", file->path, strerror(errno));
	}
	crowd.data_offset = write_header(fd, shapes, shard);
	file->bytes = crowd.data_offset + shard->data_bytes;
	run_crowd(&crowd, write_blocks, DISK_THREADS);
	if (fsync(fd) < 0 || close(fd) < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", file->path, strerror(errno));
	}
}

static void index_path(const struct disk *disk, char path[DISK_PATH_BYTES + 64])
{
	snprintf(path, DISK_PATH_BYTES + 64, "%s/model.safetensors.index.json", disk->directory);
}

static void write_index(
	const struct disk *disk, const struct shapes *shapes, const struct shard *shards)
{
	char path[DISK_PATH_BYTES + 64];
	FILE *file;

	index_path(disk, path);
	file = fopen(path, "wxe");
	if (!file) {
		bench_fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
	}
	fprintf(file, "{\"metadata\":{\"total_size\":%llu},\"weight_map\":{",
		(unsigned long long)shapes->bytes);
	for (size_t s = 0; s < disk->nfiles; s++) {
		for (size_t i = 0; i < shards[s].count; i++) {
			fprintf(file, "%s\"%s\":\"%s\"", s || i ? "," : "",
				shapes->tensors[shards[s].first + i].name,
				strrchr(disk->files[s].path, '/') + 1);
		}
	}
	fputs("}}\n", file);
	if (fclose(file)) {
		bench_fail(EXIT_RUNTIME, "%s: %s", path, strerror(errno));
	}
}

/* Tensors in order, each shard as long as it may be. */
static struct shard *cut_shards(const struct shapes *shapes, uint64_t shard_bytes, size_t *ret_n)
{
	struct shard *shards = bench_need(calloc(shapes->ntensors + 1, sizeof(*shards)));
	size_t n = 0;

	for (size_t i = 0; i < shapes->ntensors; i++) {
		uint64_t bytes = shape_bytes(&shapes->tensors[i]);

		if (!n || shards[n - 1].data_bytes + bytes > shard_bytes) {
			shards[n++].first = i;
		}
		shards[n - 1].count++;
		shards[n - 1].data_bytes += bytes;
	}
	*ret_n = n;
	return shards;
}

static void make_directory(struct disk *disk)
{
	disk->made = mkdir(disk->directory, 0700) == 0;
	/* An empty one can be removed, and made again. */
	if (!disk->made && (rmdir(disk->directory) < 0 || mkdir(disk->directory, 0700) < 0)) {
		bench_fail(EXIT_RUNTIME,
			"%s: %s; a directory that can be made, or is empty, is wanted",
			disk->directory, strerror(errno));
	}
}

void disk_make(struct disk *ret_disk, const char *directory, const struct shapes *shapes,
	uint64_t shard_bytes, uint64_t seed)
{
	struct disk disk = {0};
	struct shard *shards = cut_shards(shapes, shard_bytes, &disk.nfiles);

	if ((size_t)snprintf(disk.directory, sizeof(disk.directory), "%s", directory) + 64 >
		sizeof(disk.directory)) {
		bench_fail(EXIT_RUNTIME, "%.64s…: too long a name", directory);
	}
	disk.files = bench_need(calloc(disk.nfiles, sizeof(*disk.files)));
	make_directory(&disk);
	for (size_t i = 0; i < disk.nfiles; i++) {
		struct disk_file *file = &disk.files[i];

		fprintf(stderr, "%swriting shard %zu of %zu", isatty(STDERR_FILENO) ? "\r" : "",
			i + 1, disk.nfiles);
		fputs(isatty(STDERR_FILENO) && i + 1 < disk.nfiles ? "" : "\n", stderr);
		snprintf(file->path, sizeof(file->path), "%.*s/model-%05zu-of-%05zu.safetensors",
			DISK_PATH_BYTES - 64, disk.directory, i + 1, disk.nfiles);
		write_shard(file, shapes, &shards[i], seed);
		disk.bytes += file->bytes;
	}
	write_index(&disk, shapes, shards);
	free(shards);
	*ret_disk = disk;
}

void disk_remove(struct disk *disk)
{
	char path[DISK_PATH_BYTES + 64];

	if (!disk->files) {
		return;
	}
	for (size_t i = 0; i < disk->nfiles; i++) {
		unlink(disk->files[i].path);
	}
	index_path(disk, path);
	unlink(path);
	if (disk->made) {
		rmdir(disk->directory);
	}
	free(disk->files);
	*disk = (struct disk){0};
}

const char *disk_system(const struct disk *disk)
{
	static const struct {
		unsigned long type;
		const char *name;
	} known[] = {{EXT4_SUPER_MAGIC, "ext4"}, {XFS_SUPER_MAGIC, "xfs"},
		{BTRFS_SUPER_MAGIC, "btrfs"}, {OVERLAYFS_SUPER_MAGIC, "overlay"},
		{TMPFS_MAGIC, "tmpfs"}, {NFS_SUPER_MAGIC, "nfs"}};
	static char number[32];
	struct statfs system = {0};

	if (statfs(disk->directory, &system) < 0) {
		bench_fail(EXIT_RUNTIME, "%s: %s", disk->directory, strerror(errno));
	}
	for (size_t i = 0; i < ARRAY_LEN(known); i++) {
		if ((unsigned long)system.f_type == known[i].type) {
			return known[i].name;
		}
	}
	snprintf(number, sizeof(number), "type 0x%lx", (unsigned long)system.f_type);
	return number;
}

/* Pages of the file that are in the cache. */
static size_t count_resident(const struct disk_file *file, int fd)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), n = (file->bytes + page - 1) / page, found = 0;
	unsigned char *pages = malloc(n);
	void *mapping = mmap(NULL, file->bytes, PROT_READ, MAP_SHARED, fd, 0);

	if (!pages || mapping == MAP_FAILED || mincore(mapping, file->bytes, pages) < 0) {
		bench_fail(EXIT_RUNTIME, "%s: what of it is in memory cannot be told: %s",
			file->path, strerror(errno));
	}
	for (size_t i = 0; i < n; i++) {
		found += pages[i] & 1;
	}
	munmap(mapping, file->bytes);
	free(pages);
	return found;
}

void disk_drop(const struct disk *disk)
{
	for (size_t i = 0; i < disk->nfiles; i++) {
		const struct disk_file *file = &disk->files[i];
		int fd = open(file->path, O_RDONLY | O_CLOEXEC);
		size_t resident;

		if (fd < 0) {
			bench_fail(EXIT_RUNTIME, "%s: %s", file->path, strerror(errno));
		}
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		resident = count_resident(file, fd);
		close(fd);
		if (resident) {
			bench_fail(EXIT_NO_DEVICE,
				"%s: %zu pages stay in memory (%s): reading from disk cannot be "
				"measured there; name a directory on a disk",
				file->path, resident, disk_system(disk));
		}
	}
}

static void *read_blocks(void *arg)
{
	struct crowd *crowd = arg;
	const struct disk *disk = crowd->disk;
	void *block = buffer();
	uint64_t before = 0, mine = atomic_fetch_add(&crowd->next, 1);

	for (size_t i = 0; i < disk->nfiles; i++) {
		uint64_t blocks = (disk->files[i].bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;

		while (mine < before + blocks) {
			uint64_t at = (mine - before) * BLOCK_BYTES;
			uint64_t wanted = MIN(disk->files[i].bytes - at, BLOCK_BYTES);
			ssize_t n = pread(crowd->fds[i], block, BLOCK_BYTES, (off_t)at);

			if (n < 0 || (uint64_t)n < wanted) {
				bench_fail(EXIT_RUNTIME, "%s: reading with O_DIRECT: %s",
					disk->files[i].path,
					n < 0 ? strerror(errno) : "a short read");
			}
			mine = atomic_fetch_add(&crowd->next, 1);
		}
		before += blocks;
	}
	free(block);
	return NULL;
}

double disk_read(const struct disk *disk, unsigned nthreads)
{
	struct crowd crowd = {.disk = disk, .fds = bench_need(calloc(disk->nfiles, sizeof(int)))};
	uint64_t start;
	double seconds;

	start = clock_ns();
	for (size_t i = 0; i < disk->nfiles; i++) {
		crowd.fds[i] = open(disk->files[i].path, O_RDONLY | O_DIRECT | O_CLOEXEC);
		if (crowd.fds[i] < 0) {
			bench_fail(EXIT_NO_DEVICE,
				"%s: %s with O_DIRECT: name a directory on a disk",
				disk->files[i].path, strerror(errno));
		}
	}
	run_crowd(&crowd, read_blocks, nthreads);
	seconds = (double)(clock_ns() - start) * 1e-9;
	for (size_t i = 0; i < disk->nfiles; i++) {
		close(crowd.fds[i]);
	}
	free(crowd.fds);
	return seconds;
}
