/* The worker's public functions: strew/agent.h says what they do. */
#include "agent/worker.h"
#include "agent/public.h"
#include "agent/share.h"
#include "base/util.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int check_options(
	const struct strew_agent_options *options, struct msg_register *ret_reg, struct error *err)
{
	struct msg_register reg = {
		.replica = options->replica,
		.part = options->part,
		.member = options->member,
		.members = options->members ? options->members : 1,
		.gate = options->gate ? options->gate : STREW_GATE_HELD,
		.apply = options->apply ? options->apply : STREW_APPLY_STAGED,
		.partial = options->partial != 0,
	};

	if (!options->model || !options->model[0]) {
		return error_set(err, -EINVAL, "the model has no name");
	}
	if (!string_copy(reg.model, sizeof(reg.model), options->model)) {
		return error_set(err, -E2BIG, "model %.60s...: the name is longer than %u bytes",
			options->model, LIMIT_MODEL_BYTES - 1);
	}
	if (reg.members > LIMIT_MEMBERS || reg.member >= reg.members) {
		return error_set(err, -EINVAL,
			"member %u of a group of %u members (at most %u on one node)", reg.member,
			reg.members, LIMIT_MEMBERS);
	}
	if (reg.gate != STREW_GATE_LIVE && reg.gate != STREW_GATE_HELD) {
		return error_set(err, -EINVAL, "gate %u is unknown", reg.gate);
	}
	if (reg.apply != STREW_APPLY_DIRECT && reg.apply != STREW_APPLY_STAGED) {
		return error_set(err, -EINVAL, "apply %u is unknown", reg.apply);
	}
	*ret_reg = reg;
	return 0;
}

static void agent_free(struct strew_agent *agent)
{
	agent_request_clear(&agent->session, &agent->request);
	agent_request_clear(&agent->session, &agent->resume);
	layout_finish(&agent->layout);
	free(agent->data);
	free(agent);
}

static int agent_open(const struct strew_agent_options *options, struct strew_agent **ret_agent,
	struct error *err)
{
	struct strew_agent *agent = calloc(1, sizeof(*agent));
	int rc;

	if (!agent) {
		return error_set(err, -ENOMEM, "no memory for an agent");
	}
	layout_init(&agent->layout);
	agent->check = options->check;
	agent->check_data = options->check_data;
	rc = check_options(options, &agent->reg, err);
	if (rc) {
		goto free_agent;
	}
	rc = export_set_create(&agent->set);
	if (rc) {
		goto free_agent;
	}
	rc = agent_session_open(&agent->session, options->socket, ROLE_WORKER, options->timeout_ms,
		worker_handle, agent, err);
	if (rc) {
		goto destroy_set;
	}
	rc = export_page_create((void *)(uintptr_t)agent->session.page.words,
		PAGE_WORDS * sizeof(uint64_t), &agent->words);
	if (rc == 0 && options->serve_thread) {
		rc = agent_session_start(&agent->session, err);
	}
	if (rc) {
		goto finish_session;
	}
	*ret_agent = agent;
	return 0;

finish_session:
	export_page_destroy(agent->words);
	agent_session_finish(&agent->session);
destroy_set:
	export_set_destroy(agent->set);
free_agent:
	agent_free(agent);
	return rc;
}

int strew_agent_open(const struct strew_agent_options *options, struct strew_agent **ret_agent)
{
	struct error err = {0};
	int rc = options && ret_agent ? agent_open(options, ret_agent, &err) : public_missing(&err);

	return public_return(rc, &err);
}

static int agent_declare(struct strew_agent *agent, const struct strew_parameter *said,
	uint32_t *ret_id, struct error *err)
{
	struct parameter parameter = {.name = said->name, .dtype = said->dtype, .ndim = said->ndim};
	struct tensor dims = {.name = said->name, .dtype = said->dtype, .ndim = said->ndim};
	uint64_t span_bytes;
	int rc;

	if (agent->stage != WORKER_DECLARING) {
		return error_set(err, -EINVAL, "parameters are declared before register");
	}
	memcpy(dims.shape, said->shape, sizeof(dims.shape));
	memcpy(parameter.shape, said->shape, sizeof(parameter.shape));
	memcpy(parameter.stride, said->stride, sizeof(parameter.stride));
	rc = share_span("parameter", &dims, dims.shape, parameter.stride, &span_bytes, err);
	if (rc) {
		return rc;
	}
	rc = share_add(agent->set, "parameter", said->name, said->data, span_bytes, err);
	if (rc) {
		return rc;
	}
	rc = array_grow((void **)&agent->data, &agent->cap_data, agent->layout.nparameters + 1,
		sizeof(*agent->data));
	if (rc) {
		return error_set(err, rc, "no memory for parameter %.128s", said->name);
	}
	/* Where in which allocation is known when all of them are; see worker_register.c. */
	rc = layout_add_parameter(&agent->layout, &parameter, ret_id, err);
	if (rc) {
		return rc;
	}
	agent->data[agent->layout.nparameters - 1] = said->data;
	return 0;
}

int strew_agent_declare(
	struct strew_agent *agent, const struct strew_parameter *parameter, uint32_t *ret_id)
{
	struct error err = {0};
	int rc;

	if (!agent || !parameter || !ret_id) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_declare(agent, parameter, ret_id, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

static int agent_piece(struct strew_agent *agent, const struct strew_piece *said, struct error *err)
{
	struct tensor tensor = {.name = said->tensor, .dtype = said->dtype, .ndim = said->ndim};
	struct piece piece = {
		.parameter = said->parameter, .offset = said->offset, .cast = said->cast != 0};
	bool viewed = said->view_ndim != 0;
	int rc;

	if (agent->stage != WORKER_DECLARING) {
		return error_set(err, -EINVAL, "pieces are added before register");
	}
	if (said->view_ndim < 0 || said->view_ndim > STREW_MAX_DIMS || said->ndim < 0 ||
		said->ndim > STREW_MAX_DIMS) {
		return error_set(err, -EINVAL,
			"tensor %.128s: %d dimensions and a view of %d, at most %d are supported",
			said->tensor ? said->tensor : "", said->ndim, said->view_ndim,
			STREW_MAX_DIMS);
	}
	memcpy(tensor.shape, said->shape, sizeof(tensor.shape));
	piece.ndim = viewed ? said->view_ndim : said->ndim;
	memcpy(piece.view, viewed ? said->view : said->shape, sizeof(piece.view));
	memcpy(piece.box.start, said->start, sizeof(piece.box.start));
	memcpy(piece.box.extent, said->extent, sizeof(piece.box.extent));
	memcpy(piece.stride, said->stride, sizeof(piece.stride));
	if (dims_zero(piece.ndim, said->extent)) {
		for (int i = 0; i < piece.ndim; i++) {
			/* A start beyond the end is refused with the box. */
			piece.box.extent[i] = piece.view[i] - MIN(said->start[i], piece.view[i]);
		}
	}
	rc = layout_add_tensor(&agent->layout, &tensor, &piece.tensor, err);
	return rc ? rc : layout_add_piece(&agent->layout, &piece, err);
}

static int note_layout(struct strew_agent *agent, uint32_t loader, uint32_t refused,
	enum strew_proof proof, struct error *err)
{
	if (proof != STREW_UNPROVED && proof != STREW_PROVED) {
		return error_set(err, -EINVAL, "proof %d", (int)proof);
	}
	if (agent->stage != WORKER_DECLARING) {
		return error_set(err, -EINVAL, "layouts are described before register");
	}
	agent->reg.loader = loader;
	agent->reg.refused = refused;
	agent->reg.proof = proof;
	return 0;
}

int strew_agent_note_layout(
	struct strew_agent *agent, uint32_t loader, uint32_t refused, enum strew_proof proof)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = note_layout(agent, loader, refused, proof, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

int strew_agent_piece(struct strew_agent *agent, const struct strew_piece *piece)
{
	struct error err = {0};
	int rc;

	if (!agent || !piece) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_piece(agent, piece, &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

int strew_agent_register(struct strew_agent *agent)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = worker_register(agent, deadline_in_ms(agent->session.timeout_ms), &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

static int agent_reconnect(struct strew_agent *agent, int timeout_ms, struct error *err)
{
	struct agent_session *session = &agent->session;
	bool threaded = session->threaded;
	int rc;

	if (!agent_session_gone(session)) {
		return error_set(err, -EISCONN, "reconnect: the broker is not gone");
	}
	agent_session_join(session);
	session->threaded = false;
	rc = worker_reconnect(agent, deadline_in_ms(timeout_ms), err);
	session->threaded = threaded;
	return rc;
}

int strew_agent_reconnect(struct strew_agent *agent, int timeout_ms)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = agent_reconnect(agent, timeout_ms, &err);
		agent_session_leave(&agent->session);
	}
	if (rc == 0 && agent->session.threaded) {
		rc = agent_session_start(&agent->session, &err);
		if (rc) {
			agent_session_lose(&agent->session, rc, err.text);
			agent->session.threaded = true;
		}
	}
	return public_return(rc, &err);
}

int strew_agent_withdraw(struct strew_agent *agent)
{
	struct error err = {0};
	int rc;

	if (!agent) {
		return public_return(public_missing(&err), &err);
	}
	rc = agent_session_enter(&agent->session, &err);
	if (rc == 0) {
		rc = worker_withdraw(agent, deadline_in_ms(agent->session.timeout_ms), &err);
		agent_session_leave(&agent->session);
	}
	return public_return(rc, &err);
}

int strew_agent_close(struct strew_agent *agent)
{
	struct error err = {0};
	int rc = 0;

	if (!agent) {
		return 0;
	}
	/*
	 * In a forked child only what is memory and descriptors is given back: the set and the
	 * page's registration are the parent's, and CUDA is not to be touched here, so they stay.
	 */
	if (agent_session_enter(&agent->session, &err) == 0) {
		rc = worker_withdraw(agent, deadline_in_ms(agent->session.timeout_ms), &err);
		agent_session_leave(&agent->session);
		export_page_destroy(agent->words);
		agent_session_finish(&agent->session);
		export_set_destroy(agent->set);
	} else {
		agent_session_finish(&agent->session);
	}
	agent_free(agent);
	return public_return(rc, &err);
}
