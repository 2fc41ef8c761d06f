#include "cli/originals.h"
#include "base/util.h"
#include "cli/readback.h"
#include "plan/cover.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct original *)a)->tensor->name,
		((const struct original *)b)->tensor->name);
}

int originals_of_checkpoint(const char *path, struct originals *ret, struct error *err)
{
	struct checkpoint *checkpoint = &ret->checkpoint;
	int rc;

	*ret = (struct originals){.owner = "the checkpoint"};
	rc = checkpoint_open(path, checkpoint, err);
	if (rc) {
		return rc;
	}
	ret->images = calloc(checkpoint->nshards + 1, sizeof(*ret->images));
	ret->v = calloc(checkpoint->ntensors + 1, sizeof(*ret->v));
	if (!ret->images || !ret->v) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (size_t i = 0; i < checkpoint->nshards; i++) {
		const struct shard *shard = &checkpoint->shards[i];
		void *image = mmap(NULL, shard->bytes, PROT_READ, MAP_PRIVATE, shard->file.fd, 0);

		if (image == MAP_FAILED) {
			return error_set(err, -errno, "%s: %s", shard->path, strerror(errno));
		}
		ret->images[i] = image;
		for (size_t k = 0; k < shard->file.ntensors; k++) {
			const struct safetensors_tensor *tensor = &shard->file.tensors[k];

			ret->v[ret->n++] = (struct original){.tensor = &tensor->tensor,
				.bytes = ret->images[i] + shard->file.data_offset + tensor->offset};
		}
	}
	qsort(ret->v, ret->n, sizeof(*ret->v), by_name);
	return 0;
}

/* A trainer rank, and what it has declared. */
struct rank {
	struct msg_laid_out said;
	struct manifest declared;
	struct source *sources;
	struct rank *next; /* of a higher number */
};

static void free_ranks(struct rank *rank)
{
	while (rank) {
		struct rank *next = rank->next;

		manifest_finish(&rank->declared);
		free(rank->sources);
		free(rank->said.twins);
		free(rank);
		rank = next;
	}
}

/* The model's ranks by their numbers; *model is chosen by the first one if it is empty. */
static int take_ranks(
	struct conn *conn, bool named, char *model, struct rank **ret_ranks, struct error *err)
{
	uint64_t after = 0;
	int rc = 1;

	*ret_ranks = NULL;
	while (rc > 0) {
		struct rank *rank = calloc(1, sizeof(*rank)), **at = ret_ranks;
		struct blob blob;

		if (!rank) {
			return error_set(err, -ENOMEM, "out of memory");
		}
		rc = readback_next(conn, after, true, &rank->said, &blob, err);
		if (rc > 0) {
			int failed = blob_to_declaration(
				&blob, rank->said.member, &rank->declared, &rank->sources, err);

			after = rank->said.worker;
			blob_finish(&blob);
			rc = failed ? failed : rc;
		}
		if (rc > 0 && !named && !*model) {
			string_copy(model, LIMIT_MODEL_BYTES, rank->said.model);
		}
		if (rc <= 0 || strcmp(model, rank->said.model) != 0) {
			if (rc > 0 && !named) {
				rc = error_set(err, -EINVAL,
					"there are trainers of %s and of %s: name one with --model",
					model, rank->said.model);
			}
			free_ranks(rank);
			continue;
		}
		while (*at && (*at)->said.member < rank->said.member) {
			at = &(*at)->next;
		}
		rank->next = *at;
		*at = rank;
	}
	return rc;
}

/* All boxes of all ranks, in the order of the ranks. */
static int unite(const struct rank *ranks, struct manifest *manifest, struct error *err)
{
	int rc = 0;

	for (const struct rank *rank = ranks; rank && rc == 0; rank = rank->next) {
		for (size_t i = 0; i < rank->declared.nboxes && rc == 0; i++) {
			struct held_box box = rank->declared.boxes[i];

			rc = manifest_add_tensor(
				manifest, &rank->declared.tensors[box.tensor], &box.tensor, err);
			rc = rc ? rc : manifest_add_box(manifest, &box, err);
		}
	}
	return rc;
}

/* A box's part out of the rank's memory to where it belongs in the dense tensor. */
static int read_part(struct conn *conn, const struct rank *rank, const struct tensor *tensor,
	const struct box *box, const struct source *source, const struct box *part,
	unsigned char *dense, struct error *err)
{
	size_t element = strew_dtype_size(tensor->dtype);
	uint64_t strides[STREW_MAX_DIMS], index[STREW_MAX_DIMS] = {0}, span, first = 0;
	int outer = tensor->ndim ? tensor->ndim - 1 : 0;
	uint64_t run = tensor->ndim ? part->extent[outer] : 1;
	unsigned char *memory;
	int rc = dims_span(tensor->ndim, part->extent, source->stride, &span), d;

	if (rc || span == 0) {
		return rc ? error_set(err, rc, "tensor %s: its strides are too large", tensor->name)
			  : 0;
	}
	for (d = 0; d < tensor->ndim; d++) {
		first += (part->start[d] - box->start[d]) * source->stride[d];
	}
	memory = malloc(span * element);
	if (!memory) {
		return error_set(err, -ENOMEM, "out of memory for tensor %s", tensor->name);
	}
	rc = readback_read(conn, &rank->said, source->memory,
		source->offset_bytes + first * element, span * element, memory, READBACK_MS, err);
	dims_dense(tensor->ndim, tensor->shape, strides);
	while (rc == 0) {
		uint64_t from = 0, to = tensor->ndim ? part->start[outer] : 0;

		for (d = 0; d < outer; d++) {
			from += index[d] * source->stride[d];
			to += (part->start[d] + index[d]) * strides[d];
		}
		for (uint64_t i = 0; i < run; i++) {
			uint64_t step = tensor->ndim ? source->stride[outer] : 0;

			memcpy(dense + (to + i) * element, memory + (from + i * step) * element,
				element);
		}
		for (d = outer - 1; d >= 0 && ++index[d] == part->extent[d]; d--) {
			index[d] = 0;
		}
		if (d < 0) {
			break;
		}
	}
	free(memory);
	return rc;
}

static bool is_twin(const struct rank *rank, uint32_t allocation)
{
	for (size_t i = 0; i < rank->said.ntwins; i++) {
		if (rank->said.twins[i] == allocation) {
			return true;
		}
	}
	return false;
}

/* Where a box begins. */
struct place {
	uint32_t rank, allocation;
	uint64_t offset_bytes;
	uint32_t tensor;
};

static int by_place(const void *left, const void *right)
{
	const struct place *a = left, *b = right;

	if (a->rank != b->rank) {
		return a->rank < b->rank ? -1 : 1;
	}
	if (a->allocation != b->allocation) {
		return a->allocation < b->allocation ? -1 : 1;
	}
	return (a->offset_bytes > b->offset_bytes) - (a->offset_bytes < b->offset_bytes);
}

/* Tensors that are made where others were, to be published after them: of these only the last one
 * that was made is there. shared[t]: of the united manifest's. */
static int find_shared(
	const struct rank *ranks, const struct manifest *manifest, bool *shared, struct error *err)
{
	struct place *places = calloc(manifest->nboxes + 1, sizeof(*places));
	size_t n = 0, at = 0;

	if (!places) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	for (const struct rank *rank = ranks; rank; rank = rank->next) {
		for (size_t i = 0; i < rank->declared.nboxes; i++, at++) {
			const struct held_box *box = &manifest->boxes[at];

			if (!box_empty(manifest->tensors[box->tensor].ndim, &box->box)) {
				places[n++] =
					(struct place){rank->said.member, rank->sources[i].memory,
						rank->sources[i].offset_bytes, box->tensor};
			}
		}
	}
	qsort(places, n, sizeof(*places), by_place);
	for (size_t i = 1; i < n; i++) {
		if (by_place(&places[i - 1], &places[i]) == 0 &&
			places[i - 1].tensor != places[i].tensor) {
			shared[places[i - 1].tensor] = shared[places[i].tensor] = true;
		}
	}
	free(places);
	return 0;
}

/* The lowest rank's bytes of each element; held[t]: how many of a tensor's elements are here. */
static int read_ranks(struct conn *conn, const struct rank *ranks, struct originals *ret,
	unsigned char *const *dense, uint64_t *held, struct error *err)
{
	const struct rank *rank = ranks;
	struct cover cover;
	size_t own = 0;
	int rc = cover_make(&ret->manifest, &cover, err);

	if (rc) {
		return rc;
	}
	for (size_t i = 0; i < ret->manifest.nboxes && rc == 0; i++, own++) {
		const struct held_box *box = &ret->manifest.boxes[i];
		const struct tensor *tensor = &ret->manifest.tensors[box->tensor];
		const struct box *parts;
		size_t n = cover_parts(&cover, &ret->manifest, i, &parts);

		while (own == rank->declared.nboxes) {
			rank = rank->next;
			own = 0;
		}
		ret->twins += n && is_twin(rank, rank->sources[own].memory);
		for (size_t k = 0; k < n && rc == 0; k++) {
			held[box->tensor] += box_count(tensor->ndim, &parts[k]);
			rc = read_part(conn, rank, tensor, &box->box, &rank->sources[own],
				&parts[k], dense[box->tensor], err);
		}
	}
	cover_finish(&cover);
	return rc;
}

static int gather(struct conn *conn, const struct rank *ranks, struct originals *ret,
	unsigned char **dense, uint64_t *held, bool *shared, struct error *err)
{
	size_t ntensors = ret->manifest.ntensors;
	int rc;

	ret->memory_bytes = manifest_bytes(&ret->manifest) + 1;
	ret->memory = mmap(NULL, ret->memory_bytes, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (ret->memory == MAP_FAILED) {
		ret->memory = NULL;
		return error_set(
			err, -ENOMEM, "out of memory: the model has %zu bytes", ret->memory_bytes);
	}
	for (size_t i = 0, at = 0; i < ntensors; i++) {
		dense[i] = ret->memory + at;
		at += tensor_bytes(&ret->manifest.tensors[i]);
	}
	rc = find_shared(ranks, &ret->manifest, shared, err);
	rc = rc ? rc : read_ranks(conn, ranks, ret, dense, held, err);
	for (size_t i = 0; i < ntensors && rc == 0; i++) {
		const struct tensor *tensor = &ret->manifest.tensors[i];
		bool all = held[i] * strew_dtype_size(tensor->dtype) == tensor_bytes(tensor);

		ret->v[ret->n++] =
			(struct original){tensor, all && !shared[i] ? dense[i] : NULL, shared[i]};
	}
	qsort(ret->v, ret->n, sizeof(*ret->v), by_name);
	return rc;
}

int originals_of_trainer(
	struct conn *conn, const char *model, struct originals *ret, struct error *err)
{
	unsigned char **dense = NULL;
	uint64_t *held = NULL;
	bool *shared = NULL;
	struct rank *ranks;
	int rc;

	*ret = (struct originals){.owner = "the trainer"};
	manifest_init(&ret->manifest);
	string_copy(ret->model, sizeof(ret->model), model ? model : "");
	rc = take_ranks(conn, model != NULL, ret->model, &ranks, err);
	if (rc == 0 && !ranks) {
		rc = error_set(err, -ENOENT,
			"no trainer%s%s has declared its tensors at this broker",
			model ? " of " : "", model ? model : "");
	}
	rc = rc ? rc : unite(ranks, &ret->manifest, err);
	if (rc == 0) {
		ret->v = calloc(ret->manifest.ntensors + 1, sizeof(*ret->v));
		dense = calloc(ret->manifest.ntensors + 1, sizeof(*dense));
		held = calloc(ret->manifest.ntensors + 1, sizeof(*held));
		shared = calloc(ret->manifest.ntensors + 1, sizeof(*shared));
		rc = ret->v && dense && held && shared
			     ? gather(conn, ranks, ret, dense, held, shared, err)
			     : error_set(err, -ENOMEM, "out of memory");
	}
	free(dense);
	free(held);
	free(shared);
	free_ranks(ranks);
	return rc;
}

void originals_close(struct originals *originals)
{
	for (size_t i = 0; originals->images && i < originals->checkpoint.nshards; i++) {
		if (originals->images[i]) {
			munmap(originals->images[i], originals->checkpoint.shards[i].bytes);
		}
	}
	free(originals->images);
	free(originals->v);
	checkpoint_close(&originals->checkpoint);
	if (originals->memory) {
		munmap(originals->memory, originals->memory_bytes);
	}
	manifest_finish(&originals->manifest);
	*originals = (struct originals){0};
}

const struct original *originals_find(
	const struct originals *originals, const struct tensor *wanted, const char **ret_why)
{
	struct original key = {.tensor = wanted};
	const struct original *found =
		bsearch(&key, originals->v, originals->n, sizeof(key), by_name);

	*ret_why = !found				   ? "does not have it"
		   : found->tensor->dtype != wanted->dtype ? "has it in another dtype"
		   : found->tensor->ndim != wanted->ndim ||
				   memcmp(found->tensor->shape, wanted->shape,
					   (size_t)wanted->ndim * sizeof(wanted->shape[0])) != 0
			   ? "has it in another shape"
		   : found->shared ? "has another tensor where it lies"
		   : !found->bytes ? "has only a part of it on this node"
				   : NULL;
	return *ret_why ? NULL : found;
}
