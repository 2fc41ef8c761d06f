#include "broker/peers.h"
#include "base/clock.h"
#include "base/util.h"
#include "gpu/memfd.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DRAFT_BYTES 65536u

bool peers_ordinary;

static void *take_memory(size_t len_bytes)
{
	void *memory;

	if (peers_ordinary) {
		memory = malloc(len_bytes);
		assert_non_null(memory);
	} else {
		assert_int_equal(strew_host_alloc(len_bytes, &memory), 0);
	}
	return memory;
}

static void give_memory(void *memory, bool ordinary)
{
	if (ordinary) {
		free(memory);
	} else {
		strew_host_free(memory);
	}
}

static uint32_t value(const char *name, uint64_t version, uint64_t element)
{
	uint64_t hash = version * 0x9e3779b97f4a7c15u + element * 0xbf58476d1ce4e5b9u;

	for (; *name; name++) {
		hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
	}
	return (uint32_t)(hash >> 24);
}

/* Elements of a peer's memory: each entry's rows, then one row as a guard. */
static size_t count(const struct rows *rows, size_t nrows)
{
	size_t n = 0;

	for (size_t i = 0; i < nrows; i++) {
		n += (rows[i].n + 1) * rows[i].cols;
	}
	return n;
}

static void set_shape(uint64_t *shape, uint64_t a, uint64_t b)
{
	shape[0] = a;
	shape[1] = b;
}

static int declare(struct worker *worker, const struct rows *rows, uint32_t *data, size_t index)
{
	struct strew_parameter parameter = {.data = data, .dtype = rows->dtype, .ndim = 2};
	struct strew_piece piece = {.tensor = rows->tensor, .dtype = rows->dtype, .ndim = 2};
	char name[64];
	int rc;

	snprintf(name, sizeof(name), "parameter.%zu.%s", index, rows->tensor);
	parameter.name = name;
	set_shape(parameter.shape, rows->n, rows->cols);
	rc = strew_agent_declare(worker->agent, &parameter, &piece.parameter);
	if (rc) {
		return rc;
	}
	set_shape(piece.shape, rows->rows, rows->cols);
	set_shape(piece.start, rows->first, 0);
	set_shape(piece.extent, rows->n, rows->cols);
	return strew_agent_piece(worker->agent, &piece);
}

int worker_start(struct worker *worker, const struct broker *broker,
	struct strew_agent_options options, const struct rows *rows, size_t nrows)
{
	uint32_t *at;

	memset(worker, 0, sizeof(*worker));
	assert_true(nrows <= PEER_ROWS);
	memcpy(worker->rows, rows, nrows * sizeof(*rows));
	worker->nrows = nrows;
	worker->bytes = count(rows, nrows) * sizeof(uint32_t);
	worker->ordinary = peers_ordinary;
	worker->memory = take_memory(worker->bytes);
	memset(worker->memory, POISON, worker->bytes);
	options.socket = broker->socket;
	if (!options.gate) {
		options.gate = STREW_GATE_LIVE;
		options.serve_thread = 1;
	}
	if (!options.members) {
		options.members = 1;
	}
	assert_int_equal(strew_agent_open(&options, &worker->agent), 0);
	at = worker->memory;
	for (size_t i = 0; i < nrows; i++) {
		assert_int_equal(declare(worker, &rows[i], at, i), 0);
		at += (rows[i].n + 1) * rows[i].cols;
	}
	return strew_agent_register(worker->agent);
}

void worker_stop(struct worker *worker)
{
	strew_agent_close(worker->agent);
	give_memory(worker->memory, worker->ordinary);
	memset(worker, 0, sizeof(*worker));
}

static bool all_poison(const uint32_t *at, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++) {
		if (at[i] != POISON * 0x01010101u) {
			return false;
		}
	}
	return true;
}

void worker_holds_each(const struct worker *worker, const uint64_t *versions)
{
	const uint32_t *at = worker->memory;

	for (size_t i = 0; i < worker->nrows; i++) {
		const struct rows *rows = &worker->rows[i];
		uint64_t n = rows->n * rows->cols;

		for (uint64_t k = 0; versions[i] && k < n; k++) {
			assert_int_equal(at[k],
				value(rows->tensor, versions[i], rows->first * rows->cols + k));
		}
		assert_true(versions[i] || all_poison(at, n));
		assert_true(all_poison(at + n, rows->cols));
		at += n + rows->cols;
	}
}

void worker_holds_some(const struct worker *worker, uint64_t version, unsigned entries)
{
	uint64_t versions[PEER_ROWS];

	for (size_t i = 0; i < PEER_ROWS; i++) {
		versions[i] = entries >> i & 1 ? version : 0;
	}
	worker_holds_each(worker, versions);
}

void worker_holds(const struct worker *worker, uint64_t version)
{
	worker_holds_some(worker, version, ~0u);
}

void worker_event(struct worker *worker, enum strew_event_type type, enum strew_outcome outcome)
{
	struct strew_event event = {0};
	int rc = strew_agent_wait(worker->agent, PATIENCE_MS, &event);

	if (rc < 0 || event.type != type ||
		(type == STREW_EVENT_DONE && event.outcome != outcome)) {
		print_error("event %d, %s was expected; %d (%s), event %d, %s: %s\n", type,
			strew_outcome_name(outcome), rc, strew_error(), event.type,
			strew_outcome_name(event.outcome), event.text);
		fail();
	}
}

void worker_is_poisoned(const struct worker *worker)
{
	assert_true(all_poison(worker->memory, worker->bytes / sizeof(uint32_t)));
}

int trainer_start(struct trainer *trainer, const struct broker *broker,
	struct strew_trainer_options options, const struct rows *rows, size_t nrows)
{
	uint32_t *at;

	memset(trainer, 0, sizeof(*trainer));
	assert_true(nrows <= PEER_ROWS);
	memcpy(trainer->rows, rows, nrows * sizeof(*rows));
	trainer->nrows = nrows;
	trainer->ordinary = peers_ordinary;
	trainer->memory = take_memory(count(rows, nrows) * sizeof(uint32_t));
	options.socket = broker->socket;
	assert_int_equal(strew_trainer_open(&options, &trainer->trainer), 0);
	at = trainer->memory;
	for (size_t i = 0; i < nrows; i++) {
		struct strew_tensor tensor = {
			.name = rows[i].tensor, .dtype = rows[i].dtype, .ndim = 2, .data = at};

		set_shape(tensor.shape, rows[i].rows, rows[i].cols);
		set_shape(tensor.start, rows[i].first, 0);
		set_shape(tensor.extent, rows[i].n, rows[i].cols);
		assert_int_equal(strew_trainer_declare(trainer->trainer, &tensor), 0);
		at += (rows[i].n + 1) * rows[i].cols;
	}
	return strew_trainer_seal(trainer->trainer);
}

void trainer_stop(struct trainer *trainer)
{
	strew_trainer_close(trainer->trainer);
	give_memory(trainer->memory, trainer->ordinary);
	memset(trainer, 0, sizeof(*trainer));
}

void trainer_write(struct trainer *trainer, uint64_t version)
{
	uint32_t *at = trainer->memory;

	for (size_t i = 0; i < trainer->nrows; i++) {
		const struct rows *rows = &trainer->rows[i];

		for (uint64_t k = 0; k < rows->n * rows->cols; k++) {
			at[k] = value(rows->tensor, version, rows->first * rows->cols + k);
		}
		at += (rows->n + 1) * rows->cols;
	}
}

int trainer_publish(struct trainer *trainer, uint64_t version, unsigned flags, int timeout_ms,
	struct strew_report *ret_report)
{
	int rc;

	trainer_write(trainer, version);
	rc = strew_trainer_publish(trainer->trainer, version, NULL, flags, timeout_ms);
	if (rc == 0) {
		rc = strew_trainer_wait_report(trainer->trainer, 30000, ret_report);
	}
	return rc ? rc : (int)ret_report->outcome;
}

void trainer_commits(struct trainer *trainer, uint64_t version)
{
	struct strew_report report = {0};
	int rc = trainer_publish(trainer, version, 0, PATIENCE_MS, &report);

	if (rc != STREW_OUTCOME_COMMITTED) {
		print_error("version %d: %d, %s\n", (int)version, rc,
			rc < 0 ? strew_error() : report.text);
	}
	assert_int_equal(rc, STREW_OUTCOME_COMMITTED);
	assert_int_equal(report.version, version);
	strew_report_finish(&report);
}

static void expect_outcome(const char *what, enum strew_outcome outcome, enum strew_outcome wanted,
	const char *text, const char *word)
{
	if (outcome != wanted || !strstr(text, word)) {
		print_error("%s: %s with \"%s\" was expected; %s: %s\n", what,
			strew_outcome_name(wanted), word, strew_outcome_name(outcome), text);
		fail();
	}
}

void trainer_reports(struct trainer *trainer, enum strew_outcome outcome, const char *word,
	struct strew_report *ret_report)
{
	int rc = strew_trainer_wait_report(trainer->trainer, 30000, ret_report);

	if (rc) {
		print_error("no report: %s\n", strew_error());
	}
	assert_int_equal(rc, 0);
	expect_outcome("report", ret_report->outcome, outcome, ret_report->text, word);
}

void report_group(const struct strew_report *report, uint32_t replica, enum strew_outcome outcome,
	const char *word)
{
	for (size_t i = 0; i < report->ngroups; i++) {
		if (report->groups[i].replica == replica) {
			expect_outcome("group", report->groups[i].outcome, outcome,
				report->groups[i].text, word);
			return;
		}
	}
	print_error("no group of replica %u is in the report\n", replica);
	fail();
}

static void draft_memory(struct draft *draft)
{
	draft->allocation.kind = 1; /* a memfd */
	draft->allocation.base = 0x10000;
	draft->allocation.size = DRAFT_BYTES;
	draft->allocation.chunks = 1;
	draft->reg.allocations = draft->trainer.allocations = 1;
	assert_int_equal(memfd_create_sealed("draft", DRAFT_BYTES, &draft->fd), 0);
}

void draft_worker(struct draft *draft, const char *model, const struct rows *rows, size_t nrows)
{
	draft_worker_at(draft, model, 0, rows, nrows);
}

void draft_worker_at(struct draft *draft, const char *model, uint64_t offset,
	const struct rows *rows, size_t nrows)
{
	struct layout layout;
	struct error err;

	memset(draft, 0, sizeof(*draft));
	draft_memory(draft);
	string_copy(draft->reg.model, sizeof(draft->reg.model), model);
	draft->reg.members = 1;
	draft->reg.gate = STREW_GATE_LIVE;
	draft->reg.apply = STREW_APPLY_DIRECT;
	layout_init(&layout);
	for (size_t i = 0; i < nrows; i++) {
		struct tensor tensor = {.name = rows[i].tensor, .dtype = rows[i].dtype, .ndim = 2};
		struct parameter parameter = {.name = rows[i].tensor,
			.dtype = rows[i].dtype,
			.ndim = 2,
			.offset_bytes = offset,
			.shape = {rows[i].n, rows[i].cols},
			.stride = {rows[i].cols, 1}};
		struct piece piece = {.ndim = 2,
			.view = {rows[i].rows, rows[i].cols},
			.box = {{rows[i].first, 0}, {rows[i].n, rows[i].cols}},
			.stride = {rows[i].cols, 1}};

		set_shape(tensor.shape, rows[i].rows, rows[i].cols);
		assert_int_equal(layout_add_tensor(&layout, &tensor, &piece.tensor, &err), 0);
		assert_int_equal(
			layout_add_parameter(&layout, &parameter, &piece.parameter, &err), 0);
		assert_int_equal(layout_add_piece(&layout, &piece, &err), 0);
		offset += rows[i].n * rows[i].cols * 4;
	}
	assert_int_equal(layout_seal(&layout, false, &err), 0);
	assert_int_equal(blob_from_layout(&layout, &draft->blob, &err), 0);
	layout_finish(&layout);
}

void draft_trainer(struct draft *draft, const char *model, uint32_t rank, const struct rows *rows,
	size_t nrows)
{
	struct source sources[PEER_ROWS];
	struct manifest manifest;
	uint64_t offset = 0;
	struct error err;

	memset(draft, 0, sizeof(*draft));
	draft->is_trainer = true;
	draft_memory(draft);
	string_copy(draft->trainer.model, sizeof(draft->trainer.model), model);
	draft->trainer.rank = rank;
	draft->trainer.ranks = rank + 1;
	manifest_init(&manifest);
	for (size_t i = 0; i < nrows; i++) {
		struct tensor tensor = {.name = rows[i].tensor, .dtype = rows[i].dtype, .ndim = 2};
		struct held_box box = {
			.rank = rank, .box = {{rows[i].first, 0}, {rows[i].n, rows[i].cols}}};

		set_shape(tensor.shape, rows[i].rows, rows[i].cols);
		assert_int_equal(manifest_add_tensor(&manifest, &tensor, &box.tensor, &err), 0);
		assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
		sources[i] = (struct source){.offset_bytes = offset, .stride = {rows[i].cols, 1}};
		offset += rows[i].n * rows[i].cols * 4;
	}
	assert_int_equal(blob_from_manifest(&manifest, sources, &draft->blob, &err), 0);
	manifest_finish(&manifest);
}

void draft_large(struct draft *draft, const char *model, size_t ntensors, unsigned name_bytes)
{
	static const struct rows one[] = {{"w", STREW_F32, 1, 1, 0, 1}};
	struct source *sources = calloc(ntensors, sizeof(*sources));
	struct manifest manifest;
	struct error err;

	draft_trainer(draft, model, 0, one, 1);
	blob_finish(&draft->blob);
	manifest_init(&manifest);
	assert_non_null(sources);
	for (size_t i = 0; i < ntensors; i++) {
		char name[LIMIT_NAME_BYTES];
		struct tensor tensor = {.name = name, .dtype = STREW_F32, .ndim = 1, .shape = {1}};
		struct held_box box = {.box = {{0}, {1}}};

		snprintf(name, sizeof(name), "%0*zu", (int)name_bytes, i);
		sources[i].stride[0] = 1; /* all in one place */
		assert_int_equal(manifest_add_tensor(&manifest, &tensor, &box.tensor, &err), 0);
		assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
	}
	assert_int_equal(blob_from_manifest(&manifest, sources, &draft->blob, &err), 0);
	manifest_finish(&manifest);
	free(sources);
}

void draft_finish(struct draft *draft)
{
	blob_finish(&draft->blob);
	fd_close(&draft->fd);
}

void draft_send(struct raw *raw, const struct draft *draft)
{
	uint64_t chunk_bytes = draft->allocation.size;
	uint64_t serial = ++raw->serial;
	struct message message;
	struct error err;

	message_init(&message, draft->is_trainer ? MSG_TRAINER : MSG_REGISTER, serial);
	if (draft->is_trainer) {
		message.u.trainer = draft->trainer;
	} else {
		message.u.reg = draft->reg;
	}
	raw_send(raw, &message);
	message_init(&message, MSG_ALLOCATION, serial);
	message.u.allocation = draft->allocation;
	message.u.allocation.chunk_bytes = &chunk_bytes;
	message.u.allocation.nchunk_bytes = 1;
	message.fds[0] = dup(draft->fd);
	message.nfds = 1;
	raw_send(raw, &message);
	assert_int_equal(blob_send_wait(raw->conn, &draft->blob,
				 draft->is_trainer ? PART_DECLARATION : PART_LAYOUT,
				 deadline_in_ms(PATIENCE_MS), &err),
		0);
	message_init(&message, MSG_SEAL, serial);
	message.u.seal.parts = blob_parts(&draft->blob);
	message.u.seal.bytes = draft->blob.len;
	message.u.seal.hash = blob_hash(&draft->blob);
	raw_send(raw, &message);
}

void draft_register(struct raw *raw, const struct draft *draft)
{
	struct message message;

	draft_send(raw, draft);
	raw_expect(raw, draft->is_trainer ? MSG_DECLARED : MSG_REGISTERED, &message);
	message_finish(&message);
}

void draft_refused(struct raw *raw, const struct draft *draft, int code, const char *word)
{
	draft_send(raw, draft);
	raw_expect_error(raw, code, word);
}
