#include "agent/share.h"
#include "base/util.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>

bool dims_zero(int ndim, const uint64_t *dims)
{
	for (int i = 0; i < ndim; i++) {
		if (dims[i]) {
			return false;
		}
	}
	return true;
}

int share_span(const char *what, const struct tensor *tensor, const uint64_t *extent,
	uint64_t *stride, uint64_t *ret_span_bytes, struct error *err)
{
	uint64_t span;
	int rc = tensor_check_as(what, tensor, err);

	if (rc) {
		return rc;
	}
	if (dims_zero(tensor->ndim, stride)) {
		dims_dense(tensor->ndim, extent, stride);
	}
	if (dims_span(tensor->ndim, extent, stride, &span) ||
		mul_overflows(span, (uint64_t)strew_dtype_size(tensor->dtype), &span)) {
		return error_set(err, -ERANGE, "%s %.128s: its strides reach over 2^64 bytes", what,
			tensor->name);
	}
	*ret_span_bytes = span;
	return 0;
}

int share_add(struct export_set *set, const char *what, const char *name, const void *data,
	uint64_t span_bytes, struct error *err)
{
	int rc;

	if (span_bytes == 0) {
		return 0;
	}
	rc = export_add(set, data, span_bytes, err);
	if (rc) {
		error_prefix(err, "%s %.100s", what, name);
	}
	return rc;
}

int share_locate(const struct export_set *set, const char *what, const char *name, const void *data,
	uint64_t span_bytes, uint32_t *ret_allocation, uint64_t *ret_offset, struct error *err)
{
	int rc;

	if (span_bytes == 0) {
		*ret_allocation = 0;
		*ret_offset = 0;
		return 0;
	}
	rc = export_locate(set, data, ret_allocation, ret_offset, err);
	if (rc) {
		error_prefix(err, "%s %.100s", what, name);
	}
	return rc;
}

static int send_chunks(struct agent_session *session, struct handle *handle, uint32_t index,
	uint32_t first, uint64_t serial, uint64_t deadline, struct error *err)
{
	uint32_t n = MIN(handle->nchunks - first, LIMIT_FRAME_FDS);
	struct msg_allocation *said;
	struct message message;

	message_init(&message, MSG_ALLOCATION, serial);
	said = &message.u.allocation;
	said->index = index;
	said->kind = handle->pull ? HANDLE_PULL : (uint32_t)handle->kind;
	said->base = handle->base;
	said->size = handle->size_bytes;
	said->buffer_id = handle->buffer_id;
	memcpy(said->uuid, handle->uuid, sizeof(said->uuid));
	memcpy(said->ipc, handle->ipc, sizeof(said->ipc));
	said->first_chunk = first;
	said->chunks = handle->nchunks;
	/* Borrowed: sending does not finish the message's arrays. */
	said->chunk_bytes = n ? handle->chunk_bytes + first : NULL;
	said->nchunk_bytes = n;
	for (uint32_t i = 0; i < n; i++) {
		message.fds[i] = fd_take(&handle->fds[first + i]);
	}
	message.nfds = n;
	return agent_session_send_wait(session, &message, deadline, err);
}

static int send_allocation(struct agent_session *session, const struct export_set *set,
	uint32_t index, uint64_t serial, uint64_t deadline, struct error *err)
{
	struct handle handle;
	uint32_t first = 0;
	int rc = export_handle(set, index, &handle, err);

	if (rc) {
		return rc;
	}
	do {
		rc = send_chunks(session, &handle, index, first, serial, deadline, err);
		first += LIMIT_FRAME_FDS;
	} while (rc == 0 && first < handle.nchunks);
	handle_finish(&handle);
	return rc;
}

static int send_blob(struct agent_session *session, const struct blob *blob, enum part_of of,
	uint64_t deadline, struct error *err)
{
	int rc = agent_session_lost(session, err);

	if (rc) {
		return rc;
	}
	rc = blob_send_wait(session->conn, blob, of, deadline, err);
	if (rc < 0) {
		agent_session_ended(session, rc, err);
		return rc == -ETIMEDOUT ? rc : agent_session_lost(session, err);
	}
	return 0;
}

static int send_seal(struct agent_session *session, const struct blob *blob, uint64_t serial,
	uint64_t deadline, struct error *err)
{
	struct message seal;

	message_init(&seal, MSG_SEAL, serial);
	seal.u.seal.parts = blob_parts(blob);
	seal.u.seal.bytes = blob->len;
	seal.u.seal.hash = blob_hash(blob);
	return agent_session_send_wait(session, &seal, deadline, err);
}

int share_send(struct agent_session *session, const struct export_set *set, struct message *opening,
	const struct blob *blob, enum part_of of, uint64_t deadline, struct agent_request *request,
	struct error *err)
{
	int rc;

	agent_request_begin(session, request);
	opening->serial = request->serial;
	rc = agent_session_send_wait(session, opening, deadline, err);
	for (uint32_t i = 0; rc == 0 && i < export_count(set); i++) {
		rc = send_allocation(session, set, i, request->serial, deadline, err);
	}
	if (rc == 0) {
		rc = send_blob(session, blob, of, deadline, err);
	}
	if (rc == 0) {
		rc = send_seal(session, blob, request->serial, deadline, err);
	}
	if (rc == 0) {
		return 0;
	}
	agent_session_lose(session, rc, err->text);
	/* A broker that refused in the middle hung up on the rest: its answer says more. */
	if (request->answered && request->answer.type == MSG_ERROR) {
		rc = agent_request_result(request, MSG_ERROR, err);
	}
	agent_request_clear(session, request);
	return rc;
}
