/*
 * The answer to explain: the way of one tensor, or into one parameter, as this broker knows it:
 * first the boxes that trainer ranks hold, then what was hashed of them on their way over the wire,
 * then the pieces of the workers here. Rows are counted through; who asks gets a page of them.
 * Only looks.
 */
#include "base/util.h"
#include "broker/plans_internal.h"
#include "broker/server.h"
#include "plan/name_index.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sheet {
	const struct server *server;
	bool owner; /* who asks may know what weights are made of */
	const struct msg_explain *asked;
	struct explained *rows; /* LIMIT_EXPLAINED of them */
	size_t n;
	uint64_t seen; /* rows so far, those of earlier pages too */
};

/* Room for the next row, zeroed; NULL: it is on another page. */
static struct explained *next_row(struct sheet *sheet)
{
	uint64_t number = sheet->seen++;

	if (number < sheet->asked->from || sheet->n == LIMIT_EXPLAINED) {
		return NULL;
	}
	return &sheet->rows[sheet->n++];
}

static void fill_tensor(const struct tensor *tensor, const char *model, struct explained *row)
{
	string_copy(row->model, sizeof(row->model), model);
	string_copy(row->tensor, sizeof(row->tensor), tensor->name);
	row->dtype = tensor->dtype;
	dims_format(row->shape, sizeof(row->shape), tensor->ndim, tensor->shape);
}

static void fill_box(const struct box *box, int ndim, struct explained *row)
{
	dims_format(row->start, sizeof(row->start), ndim, box->start);
	dims_format(row->extent, sizeof(row->extent), ndim, box->extent);
}

/* Of an allocation: how it is shared, and where it lies. */
static void fill_handle(const struct handle *handle, struct explained *row)
{
	static const char *const kinds[] = {[HANDLE_MEMFD] = "memfd",
		[HANDLE_CUDA_IPC] = "CUDA IPC",
		[HANDLE_CUDA_VMM] = "CUDA VMM"};
	const char *kind = (unsigned)handle->kind < ARRAY_LEN(kinds) ? kinds[handle->kind] : NULL;

	string_copy(row->handle, sizeof(row->handle), kind ? kind : "?");
	string_copy(row->route, sizeof(row->route), handle->pull ? "pull" : "raw");
	gpu_uuid_format(row->device, sizeof(row->device), handle->uuid);
}

static bool reaches(const struct sheet *sheet, const uint8_t *from, const uint8_t *to)
{
	return !from || !to || gpu_reaches(sheet->server->gpu, from, to);
}

/* Where a box lies for this broker: with its trainer, or in a slot. NULL: nobody knows. */
static const uint8_t *source_of(
	const struct sheet *sheet, const struct publication *publication, size_t number)
{
	const struct held_box *box = &publication->manifest.boxes[number];
	const struct holder *holder = publication->holders[box->rank];
	uint32_t memory = publication->sources[number].memory;

	return memory == SOURCE_ELSEWHERE || !holder
		       ? moves_slots_uuid(sheet->server->moves)
		       : holder->exports.handles[memory - publication->space_base[box->rank]].uuid;
}

/* Some GPU from which the tensor's bytes do not get to that one directly; NULL: all do. */
static const uint8_t *far_source(const struct sheet *sheet, const char *model_name,
	const char *tensor_name, const uint8_t *target)
{
	for (const struct model *model = sheet->server->models; model; model = model->next) {
		const struct publication *publication = model->publication;
		int64_t tensor = publication && strcmp(model->name, model_name) == 0
					 ? manifest_find(&publication->manifest, tensor_name)
					 : -1;

		for (size_t i = 0; tensor >= 0 && i < publication->manifest.nboxes; i++) {
			const uint8_t *source = source_of(sheet, publication, i);

			if (publication->manifest.boxes[i].tensor == tensor &&
				!reaches(sheet, source, target)) {
				return source;
			}
		}
	}
	return NULL;
}

/* A worker's piece: on its way into its shadow, if it has one there, and from that. */
static void fill_bounce(const struct sheet *sheet, const struct worker *worker,
	const struct handle *handle, struct explained *row)
{
	const uint8_t *shadow =
		worker->shadow && !handle->pull ? gpu_memory_uuid(worker->shadow) : handle->uuid;
	const uint8_t *far = far_source(sheet, row->model, row->tensor, shadow);

	if (!far && !reaches(sheet, shadow, handle->uuid)) {
		far = shadow;
	}
	if (far) {
		gpu_uuid_format(row->bounce, sizeof(row->bounce), far);
	}
}

static void add_held(struct sheet *sheet, const struct model *model, size_t number)
{
	const struct publication *publication = model->publication;
	const struct held_box *box = &publication->manifest.boxes[number];
	const struct tensor *tensor = &publication->manifest.tensors[box->tensor];
	const struct source *source = &publication->sources[number];
	const struct seat *seat = &model->seats[box->rank];
	const struct holder *holder = publication->holders[box->rank];
	const uint8_t *slots = moves_slots_uuid(sheet->server->moves);
	struct explained *row = next_row(sheet);

	if (!row) {
		return;
	}
	row->kind = EXPLAINED_HELD;
	fill_tensor(tensor, model->name, row);
	fill_box(&box->box, tensor->ndim, row);
	row->rank = box->rank;
	row->version = model->committed;
	if (seat->client) {
		row->pid = (uint64_t)seat->client->peer.pid;
		row->worker = seat->client->id;
	} else if (seat->member) {
		string_copy(row->where, sizeof(row->where), seat->member->join.name);
	}
	if (source->memory != SOURCE_ELSEWHERE && holder) {
		uint32_t allocation = source->memory - publication->space_base[box->rank];

		row->here = 1;
		row->allocation = allocation;
		row->offset = source->offset_bytes;
		dims_format(row->stride, sizeof(row->stride), tensor->ndim, source->stride);
		fill_handle(&holder->exports.handles[allocation], row);
		if (sheet->server->epoch.ranks > 1 &&
			!reaches(sheet, holder->exports.handles[allocation].uuid, slots)) {
			gpu_uuid_format(row->bounce, sizeof(row->bounce), slots);
		}
	}
}

static void add_piece(
	struct sheet *sheet, const struct team *team, uint32_t member, const struct piece *piece)
{
	const struct client *client = team->clients[member];
	const struct worker *worker = client->session.worker;
	const struct parameter *parameter = &worker->layout.parameters[piece->parameter];
	struct explained *row = next_row(sheet);

	if (!row) {
		return;
	}
	row->kind = EXPLAINED_PIECE;
	fill_tensor(&worker->layout.tensors[piece->tensor], team->group.model, row);
	fill_box(&piece->box, piece->ndim, row);
	dims_format(row->view, sizeof(row->view), piece->ndim, piece->view);
	dims_format(row->stride, sizeof(row->stride), piece->ndim, piece->stride);
	row->replica = team->group.replica;
	row->part = team->group.part;
	row->member = member;
	row->pid = (uint64_t)client->peer.pid;
	row->worker = client->id;
	row->here = 1;
	string_copy(row->parameter, sizeof(row->parameter), parameter->name);
	row->parameter_dtype = parameter->dtype;
	dims_format(row->parameter_shape, sizeof(row->parameter_shape), parameter->ndim,
		parameter->shape);
	row->allocation = parameter->allocation;
	row->offset = parameter->offset_bytes + piece->offset * strew_dtype_size(parameter->dtype);
	row->cast = piece->cast && parameter->dtype != worker->layout.tensors[piece->tensor].dtype;
	fill_handle(&worker->exports.handles[parameter->allocation], row);
	fill_bounce(sheet, worker, &worker->exports.handles[parameter->allocation], row);
	row->staged = worker->staged;
	row->state = group_state(&team->group);
	row->version = team->group.version;
}

/* The publication that had the sums' buckets, if it is still there. */
static const struct publication *moved_by(const struct model *model, uint64_t key)
{
	if (model->publication->key == key) {
		return model->publication;
	}
	for (uint32_t i = 0; i < model->nsubsets; i++) {
		if (model->subsets[i]->publication->key == key) {
			return model->subsets[i]->publication;
		}
	}
	return NULL;
}

static void add_sum(struct sheet *sheet, const struct model *model, const struct tensor *tensor,
	const struct sums *sums, size_t bucket, size_t fold)
{
	struct explained *row = next_row(sheet);

	if (row) {
		row->kind = EXPLAINED_SLOT;
		fill_tensor(tensor, model->name, row);
		row->version = sums->version;
		row->bucket = bucket;
		row->nodes = sums->nodes;
		if (bucket / fold < sums->n) {
			row->fold = (uint32_t)fold;
			row->sum = sums->v[bucket / fold];
		}
	}
}

/* A row for each sum, of the first bucket in it that has some of the tensor. */
static void add_sums(struct sheet *sheet, const struct model *model, const struct sums *sums)
{
	const struct publication *publication = moved_by(model, sums->key);
	struct buckets buckets = {0};
	size_t fold, last = SIZE_MAX;
	int64_t tensor =
		publication ? manifest_find(&publication->manifest, sheet->asked->name) : -1;

	if (tensor < 0 ||
		hashes_buckets(publication, &sums->slot_types, sums->slot_bytes, &buckets)) {
		return;
	}
	fold = hashes_fold(&buckets);
	for (size_t i = 0; i < buckets.n; i++) {
		const struct bucket_entry *entry = &buckets.entries[buckets.v[i].first];
		size_t k = 0;

		while (k < buckets.v[i].count &&
			publication->manifest.boxes[entry[k].box].tensor != tensor) {
			k++;
		}
		if (k < buckets.v[i].count && i / fold != last) {
			last = i / fold;
			add_sum(sheet, model, &publication->manifest.tensors[tensor], sums, i,
				fold);
		}
	}
	buckets_finish(&buckets);
}

static bool model_asked(const struct sheet *sheet, const char *model)
{
	return !sheet->asked->model[0] || strcmp(sheet->asked->model, model) == 0;
}

static void add_model(struct sheet *sheet, const struct model *model)
{
	const struct manifest *manifest = &model->publication->manifest;
	int64_t tensor = manifest_find(manifest, sheet->asked->name);

	for (size_t i = 0; tensor >= 0 && i < manifest->nboxes; i++) {
		if (manifest->boxes[i].tensor == tensor) {
			add_held(sheet, model, i);
		}
	}
	for (const struct sums *sums = model->sums; sheet->owner && sums; sums = sums->next) {
		add_sums(sheet, model, sums);
	}
}

static void add_worker(struct sheet *sheet, const struct team *team, uint32_t member)
{
	const struct layout *layout = &team->clients[member]->session.worker->layout;
	int64_t tensor = name_index_find(layout->tensor_index, sheet->asked->name);
	int64_t parameter = name_index_find(layout->parameter_index, sheet->asked->name);

	for (size_t i = 0; (tensor >= 0 || parameter >= 0) && i < layout->npieces; i++) {
		if (layout->pieces[i].tensor == tensor ||
			layout->pieces[i].parameter == parameter) {
			add_piece(sheet, team, member, &layout->pieces[i]);
		}
	}
}

static bool live(const struct client *client)
{
	return client && client->session.worker && client->session.state == SESSION_LIVE;
}

/* Every model's trainers and every group's workers, in an order that stands between two pages
 * unless somebody comes or goes. */
static void collect(struct server *server, struct sheet *sheet)
{
	for (const struct model *model = server->models; model; model = model->next) {
		if (model->publication && model_asked(sheet, model->name)) {
			add_model(sheet, model);
		}
	}
	for (const struct team *team = server->teams; team; team = team->next) {
		for (uint32_t i = 0;
			model_asked(sheet, team->group.model) && i < team->group.nmembers; i++) {
			if (live(team->clients[i])) {
				add_worker(sheet, team, i);
			}
		}
	}
}

/* Names that hold what was asked for, for a person who does not have it by heart. */
struct hint {
	char text[LIMIT_TEXT_BYTES / 2];
};

static void hint_at(struct hint *hint, const char *part, const char *name)
{
	size_t used = strlen(hint->text);

	if (strstr(name, part) && !strstr(hint->text, name) &&
		used + strlen(name) + 3 < sizeof(hint->text)) {
		snprintf(hint->text + used, sizeof(hint->text) - used, "%s%s", used ? ", " : "",
			name);
	}
}

/* The first member's stands for its group. */
static void hint_at_layout(struct hint *hint, const char *part, const struct layout *layout)
{
	for (size_t i = 0; i < layout->ntensors; i++) {
		hint_at(hint, part, layout->tensors[i].name);
	}
	for (size_t i = 0; i < layout->nparameters; i++) {
		hint_at(hint, part, layout->parameters[i].name);
	}
}

static void refuse(struct client *client, const struct message *message)
{
	const struct msg_explain *asked = &message->u.explain;
	struct server *server = client->server;
	struct hint hint = {""};
	struct error err;

	for (const struct model *model = server->models; model; model = model->next) {
		const struct manifest *manifest =
			model->publication ? &model->publication->manifest : NULL;

		for (size_t i = 0; manifest && i < manifest->ntensors; i++) {
			hint_at(&hint, asked->name, manifest->tensors[i].name);
		}
	}
	for (const struct team *team = server->teams; team; team = team->next) {
		if (live(team->clients[0])) {
			hint_at_layout(
				&hint, asked->name, &team->clients[0]->session.worker->layout);
		}
	}
	error_set(&err, -ENOENT, "no tensor or parameter %.60s is known here%s%s", asked->name,
		hint.text[0] ? "; there is " : "", hint.text);
	client_error(client, message->serial, -ENOENT, err.text);
}

void explain_answer(struct client *client, const struct message *message)
{
	struct sheet sheet = {.server = client->server,
		.owner = client->peer.uid == geteuid(),
		.asked = &message->u.explain};
	struct message answer;

	message_init(&answer, MSG_EXPLAINED, message->serial);
	sheet.rows = calloc(LIMIT_EXPLAINED, sizeof(*sheet.rows));
	if (!sheet.rows) {
		client_error(client, message->serial, -ENOMEM, "out of memory");
		return;
	}
	collect(client->server, &sheet);
	answer.u.explained.rows = sheet.rows;
	answer.u.explained.nrows = sheet.n;
	answer.u.explained.total = sheet.seen;
	if (sheet.seen) {
		client_send(client, &answer);
	} else {
		refuse(client, message);
	}
	message_finish(&answer);
}
