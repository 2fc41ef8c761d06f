/* The trainer's public functions up to the first update: strew/trainer.h says what they do. */
#include "agent/trainer.h"
#include "agent/public.h"
#include "agent/share.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PARTING_MS 1000 /* for the broker to take note of the end */

static int check_options(
	const struct strew_trainer_options *options, struct msg_trainer *ret_who, struct error *err)
{
	struct msg_trainer who = {
		.rank = options->rank, .ranks = options->ranks ? options->ranks : 1};

	if (!options->model || !options->model[0]) {
		return error_set(err, -EINVAL, "the model has no name");
	}
	if (!string_copy(who.model, sizeof(who.model), options->model)) {
		return error_set(err, -E2BIG, "model %.60s...: the name is longer than %u bytes",
			options->model, LIMIT_MODEL_BYTES - 1);
	}
	if (who.ranks > LIMIT_RANKS || who.rank >= who.ranks) {
		return error_set(err, -EINVAL, "trainer rank %u of %u (at most %u ranks)", who.rank,
			who.ranks, LIMIT_RANKS);
	}
	*ret_who = who;
	return 0;
}

static void trainer_free(struct strew_trainer *trainer)
{
	agent_request_clear(&trainer->session, &trainer->request);
	agent_request_clear(&trainer->session, &trainer->publish);
	if (trainer->reported) {
		message_finish(&trainer->report);
	}
	trainer_free_subsets(trainer);
	manifest_finish(&trainer->manifest);
	free(trainer->sources);
	free(trainer->memory);
	free(trainer);
}

static int trainer_open(const struct strew_trainer_options *options,
	struct strew_trainer **ret_trainer, struct error *err)
{
	struct strew_trainer *trainer = calloc(1, sizeof(*trainer));
	int rc;

	if (!trainer) {
		return error_set(err, -ENOMEM, "no memory for a trainer");
	}
	manifest_init(&trainer->manifest);
	rc = check_options(options, &trainer->who, err);
	if (rc) {
		goto free_trainer;
	}
	rc = export_set_create(&trainer->set);
	if (rc) {
		goto free_trainer;
	}
	rc = agent_session_open(&trainer->session, options->socket, ROLE_TRAINER,
		options->timeout_ms, trainer_handle, trainer, err);
	if (rc) {
		goto destroy_set;
	}
	rc = export_page_create((void *)(uintptr_t)trainer->session.page.words,
		PAGE_WORDS * sizeof(uint64_t), &trainer->words);
	if (rc) {
		goto finish_session;
	}
	*ret_trainer = trainer;
	return 0;

finish_session:
	agent_session_finish(&trainer->session);
destroy_set:
	export_set_destroy(trainer->set);
free_trainer:
	trainer_free(trainer);
	return rc;
}

int strew_trainer_open(
	const struct strew_trainer_options *options, struct strew_trainer **ret_trainer)
{
	struct error err = {0};
	int rc = options && ret_trainer ? trainer_open(options, ret_trainer, &err)
					: public_missing(&err);

	return public_return(rc, &err);
}

/* The box, its tensor and the strides of its memory, with the defaults filled in. */
static int read_tensor(const struct strew_tensor *said, struct tensor *tensor, struct held_box *box,
	struct source *source, uint64_t *ret_span_bytes, struct error *err)
{
	*tensor = (struct tensor){.name = said->name, .dtype = said->dtype, .ndim = said->ndim};
	memcpy(tensor->shape, said->shape, sizeof(tensor->shape));
	if (said->ndim >= 0 && said->ndim <= STREW_MAX_DIMS) {
		memcpy(box->box.start, said->start, sizeof(box->box.start));
		memcpy(box->box.extent, said->extent, sizeof(box->box.extent));
		memcpy(source->stride, said->stride, sizeof(source->stride));
		if (dims_zero(said->ndim, said->extent)) {
			for (int i = 0; i < said->ndim; i++) {
				/* A start beyond the end is refused with the box. */
				box->box.extent[i] =
					said->shape[i] - MIN(said->start[i], said->shape[i]);
			}
		}
	}
	return share_span("tensor", tensor, box->box.extent, source->stride, ret_span_bytes, err);
}

static int trainer_declare(
	struct strew_trainer *trainer, const struct strew_tensor *said, struct error *err)
{
	struct held_box box = {.rank = trainer->who.rank};
	struct held_memory memory = {.data = said->data};
	struct source source = {0};
	struct tensor tensor;
	size_t n = trainer->manifest.nboxes;
	int rc;

	if (trainer->stage != TRAINER_DECLARING) {
		return error_set(err, -EINVAL, "tensors are declared before seal");
	}
	rc = read_tensor(said, &tensor, &box, &source, &memory.span_bytes, err);
	if (rc == 0) {
		rc = share_add(
			trainer->set, "tensor", said->name, said->data, memory.span_bytes, err);
	}
	if (rc) {
		return rc;
	}
	rc = array_grow((void **)&trainer->sources, &trainer->cap_sources, n + 1, sizeof(source));
	if (rc == 0) {
		rc = array_grow(
			(void **)&trainer->memory, &trainer->cap_memory, n + 1, sizeof(memory));
	}
	if (rc) {
		return error_set(err, rc, "no memory for tensor %.128s", said->name);
	}
	rc = manifest_add_tensor(&trainer->manifest, &tensor, &box.tensor, err);
	if (rc == 0) {
		rc = manifest_add_box(&trainer->manifest, &box, err);
	}
	if (rc) {
		return rc;
	}
	trainer->sources[n] = source;
	trainer->memory[n] = memory;
	return 0;
}

int strew_trainer_declare(struct strew_trainer *trainer, const struct strew_tensor *tensor)
{
	struct error err = {0};
	int rc;

	if (!trainer || !tensor) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_declare(trainer, tensor, &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

/* Only now is it settled in which allocation each box lies. */
static int place_boxes(struct strew_trainer *trainer, struct error *err)
{
	const struct manifest *manifest = &trainer->manifest;
	int rc = export_settle(trainer->set, err);

	if (rc) {
		return rc;
	}
	if (export_count(trainer->set) == 0) {
		return error_set(err, -EINVAL,
			"nothing to seal: no tensor has memory here; close the trainer and declare "
			"in a new one");
	}
	if (export_count(trainer->set) > LIMIT_ALLOCATIONS) {
		return error_set(err, -E2BIG, "%zu allocations pass the limit of %u",
			export_count(trainer->set), LIMIT_ALLOCATIONS);
	}
	for (size_t i = 0; i < manifest->nboxes; i++) {
		rc = share_locate(trainer->set, "tensor",
			manifest->tensors[manifest->boxes[i].tensor].name, trainer->memory[i].data,
			trainer->memory[i].span_bytes, &trainer->sources[i].memory,
			&trainer->sources[i].offset_bytes, err);
		if (rc) {
			return rc;
		}
	}
	return 0;
}

static int send_declaration(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	struct message opening;
	struct blob blob = {0};
	int rc = place_boxes(trainer, err);

	if (rc == 0) {
		rc = blob_from_manifest(&trainer->manifest, trainer->sources, &blob, err);
	}
	if (rc) {
		return rc;
	}
	trainer->who.allocations = (uint32_t)export_count(trainer->set);
	message_init(&opening, MSG_TRAINER, 0);
	opening.u.trainer = trainer->who;
	trainer->stage = TRAINER_REFUSED;
	rc = share_send(&trainer->session, trainer->set, &opening, &blob, PART_DECLARATION,
		deadline, &trainer->request, err);
	if (rc == 0) {
		trainer->stage = TRAINER_SEALING;
	}
	blob_finish(&blob);
	return rc;
}

static int trainer_seal(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	int rc;

	if (trainer->stage == TRAINER_DECLARING) {
		rc = agent_session_lost(&trainer->session, err);
		if (rc == 0) {
			rc = send_declaration(trainer, deadline, err);
		}
		if (rc) {
			return rc;
		}
	}
	if (trainer->stage != TRAINER_SEALING) {
		return error_set(err, -EINVAL, "a trainer seals only once");
	}
	rc = agent_request_wait(&trainer->session, &trainer->request, MSG_DECLARED, deadline, err);
	/* After a timeout (other ranks are late) the next call waits for the same answer. */
	if (trainer->request.answered) {
		trainer->stage = rc ? TRAINER_REFUSED : TRAINER_SEALED;
		trainer->accepted = trainer->accepted || rc == 0;
		agent_request_clear(&trainer->session, &trainer->request);
	}
	return rc;
}

int strew_trainer_seal(struct strew_trainer *trainer)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_seal(trainer, deadline_in_ms(trainer->session.timeout_ms), &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

static int trainer_seal_again(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	int rc = trainer->stage == TRAINER_SEALED ? 0 : trainer_seal(trainer, deadline, err);

	return rc ? rc : trainer_tell_subsets(trainer, deadline, err);
}

static int trainer_reconnect(struct strew_trainer *trainer, uint64_t deadline, struct error *err)
{
	bool gone = agent_session_gone(&trainer->session);
	int rc;

	if (!trainer->accepted) {
		return error_set(err, -EINVAL, "reconnect: nothing was sealed");
	}
	/* A call before this one has got so far, and other ranks were late. */
	if (!gone && (trainer->stage == TRAINER_SEALING ||
			     (trainer->stage == TRAINER_SEALED &&
				     trainer->subsets_told < trainer->nsubsets))) {
		return trainer_seal_again(trainer, deadline, err);
	}
	if (!gone) {
		return error_set(err, -EISCONN, "reconnect: the broker is not gone");
	}
	rc = agent_session_reopen(&trainer->session, deadline, err);
	if (rc) {
		return rc;
	}
	agent_request_clear(&trainer->session, &trainer->request);
	trainer_forget(trainer);
	trainer->stage = TRAINER_DECLARING;
	trainer->subsets_told = 0;
	free(trainer->subset_late);
	trainer->subset_late = NULL;
	rc = trainer_seal_again(trainer, deadline, err);
	if (rc && trainer->stage != TRAINER_SEALING && trainer->stage != TRAINER_SEALED) {
		agent_session_lose(&trainer->session, rc, err->text);
	}
	return rc;
}

int strew_trainer_reconnect(struct strew_trainer *trainer, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!trainer) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&trainer->session, &err);
	if (rc == 0) {
		rc = trainer_reconnect(trainer, deadline_in_ms(timeout_ms), &err);
		agent_session_leave(&trainer->session);
	}
	return public_return(rc, &err);
}

void strew_trainer_close(struct strew_trainer *trainer)
{
	struct error err;

	if (!trainer) {
		return;
	}
	/* In a forked child the set and the page's registration stay, as in strew_agent_close(). */
	if (agent_session_enter(&trainer->session, &err) == 0) {
		trainer_wait_released(trainer, deadline_in_ms(trainer->session.timeout_ms), &err);
		agent_session_leave(&trainer->session);
		agent_session_part(&trainer->session, deadline_in_ms(PARTING_MS));
		export_page_destroy(trainer->words);
		agent_session_finish(&trainer->session);
		export_set_destroy(trainer->set);
	} else {
		agent_session_finish(&trainer->session);
	}
	trainer_free(trainer);
}
