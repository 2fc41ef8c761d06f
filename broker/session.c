#include "broker/session.h"
#include "base/util.h"
#include "ipc/socket.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define S(state) (1u << SESSION_##state)

/* Which message may come in which state; everything else breaks the protocol. */
static const struct rule {
	enum message_type type;
	unsigned states;
	uint32_t role; /* 0: any */
} rules[] = {
	{MSG_HELLO, S(HELLO), 0},
	{MSG_REGISTER, S(OPEN), ROLE_WORKER},
	{MSG_TRAINER, S(OPEN), ROLE_TRAINER},
	{MSG_ALLOCATION, S(FILLING), 0},
	{MSG_PART, S(FILLING), 0},
	{MSG_SEAL, S(FILLING), 0},
	{MSG_WITHDRAW, S(LIVE), ROLE_WORKER},
	/* It may cross the answer to a withdraw. */
	{MSG_CHECKED, S(OPEN) | S(LIVE) | S(LEAVING), ROLE_WORKER},
	{MSG_APPLIED_ROUTE, S(OPEN) | S(LIVE) | S(LEAVING), ROLE_WORKER},
	{MSG_READY, S(LIVE) | S(LEAVING), ROLE_WORKER},
	{MSG_RESUME, S(LIVE), ROLE_WORKER},
	{MSG_PUBLISH, S(LIVE), ROLE_TRAINER},
	{MSG_SUBSET, S(LIVE), ROLE_TRAINER},
	{MSG_PUT, S(LIVE), ROLE_TRAINER},
	{MSG_CANCEL, S(LIVE), ROLE_TRAINER},
	{MSG_STATUS, S(OPEN) | S(LIVE), 0},
	{MSG_PROGRESS, S(OPEN) | S(LIVE), 0},
	{MSG_EVENTS, S(OPEN) | S(LIVE), 0},
	{MSG_EXPLAIN, S(OPEN) | S(LIVE), 0},
	{MSG_LAYOUT, S(OPEN), ROLE_OBSERVER},
	{MSG_READ, S(OPEN), ROLE_OBSERVER},
};

const char *session_state_name(enum session_state state)
{
	static const char *const names[SESSION_STATES] = {
		"hello", "open", "filling", "sealed", "live", "leaving"};

	return (unsigned)state < SESSION_STATES ? names[state] : "?";
}

static int check_allowed(const struct session *session, unsigned type, struct error *err)
{
	for (size_t i = 0; i < ARRAY_LEN(rules); i++) {
		if (rules[i].type != type) {
			continue;
		}
		if (!(rules[i].states & (1u << session->state))) {
			break;
		}
		if (rules[i].role && rules[i].role != session->hello.role) {
			return error_set(err, -EPROTO, "message %s is not for this role",
				message_name(type));
		}
		return 0;
	}
	return error_set(err, -EPROTO, "message %s does not belong here (session is %s)",
		message_name(type), session_state_name(session->state));
}

static int take_hello(struct session *session, const struct message *message, const char *backend,
	struct error *err)
{
	const struct msg_hello *hello = &message->u.hello;

	if (hello->protocol != PROTOCOL_VERSION) {
		return error_set(err, -EPROTO, "protocol %u was offered, this broker speaks %u",
			hello->protocol, PROTOCOL_VERSION);
	}
	if (strcmp(backend, "cuda") == 0 && hello->role != ROLE_OBSERVER &&
		hello->pid_namespace != socket_pid_namespace()) {
		return error_set(err, -EPROTO,
			"process and broker are in different PID namespaces, which the CUDA driver "
			"confuses: start both in one (containers: share the host's PID namespace)");
	}
	session->hello = *hello;
	session->state = SESSION_OPEN;
	return 0;
}

static int make_handles(struct exports *exports, uint32_t n, bool write, struct error *err)
{
	if (n > LIMIT_ALLOCATIONS) {
		return error_set(
			err, -E2BIG, "%u allocations pass the limit of %u", n, LIMIT_ALLOCATIONS);
	}
	exports->handles = calloc(n + 1u, sizeof(*exports->handles));
	if (!exports->handles) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	exports->nhandles = n;
	exports->write = write;
	return 0;
}

/* A registration begins; what an earlier one of this connection left behind is forgotten. */
static void begin_filling(struct session *session)
{
	error_clear(&session->failed);
	session->allocation = session->chunk = session->chunks = 0;
	blob_finish(&session->blob);
}

static int check_register(const struct msg_register *reg, struct error *err)
{
	if (!reg->model[0]) {
		return error_set(err, -EINVAL, "the model has no name");
	}
	if (reg->members == 0 || reg->members > LIMIT_MEMBERS) {
		return error_set(err, -EINVAL, "a group of %u members: 1 to %u are allowed",
			reg->members, LIMIT_MEMBERS);
	}
	if (reg->member >= reg->members) {
		return error_set(err, -EINVAL, "member %u of a group of %u members", reg->member,
			reg->members);
	}
	return 0;
}

static int take_register(struct session *session, const struct msg_register *reg, struct error *err)
{
	int rc = check_register(reg, err);

	if (rc) {
		return rc;
	}
	begin_filling(session);
	session->worker = calloc(1, sizeof(*session->worker));
	if (!session->worker) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	layout_init(&session->worker->layout);
	session->worker->staged = reg->apply == STREW_APPLY_STAGED;
	session->reg = *reg;
	session->state = SESSION_FILLING;
	return make_handles(&session->worker->exports, reg->allocations, true, err);
}

static int take_trainer(
	struct session *session, const struct msg_trainer *trainer, struct error *err)
{
	if (!trainer->model[0]) {
		return error_set(err, -EINVAL, "the model has no name");
	}
	if (trainer->ranks == 0 || trainer->ranks > LIMIT_RANKS ||
		trainer->rank >= trainer->ranks) {
		return error_set(err, -EINVAL,
			"trainer rank %u of %u: at most %u ranks are allowed", trainer->rank,
			trainer->ranks, LIMIT_RANKS);
	}
	begin_filling(session);
	session->holder = calloc(1, sizeof(*session->holder));
	if (!session->holder) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	manifest_init(&session->holder->declared);
	session->holder->rank = trainer->rank;
	session->trainer = *trainer;
	session->state = SESSION_FILLING;
	return make_handles(&session->holder->exports, trainer->allocations, false, err);
}

static struct exports *session_exports(struct session *session)
{
	return session->worker ? &session->worker->exports : &session->holder->exports;
}

static int begin_handle(struct handle *handle, const struct msg_allocation *said, struct error *err)
{
	if (said->size == 0 || said->chunks > LIMIT_CHUNKS) {
		return error_set(err, -E2BIG, "allocation %u: %llu bytes in %u chunks (at most %u)",
			said->index, (unsigned long long)said->size, said->chunks, LIMIT_CHUNKS);
	}
	/* What a twin is made of is told by whether a descriptor comes with it. */
	handle->pull = said->kind == HANDLE_PULL;
	handle->kind = !handle->pull  ? (enum handle_kind)said->kind
		       : said->chunks ? HANDLE_MEMFD
				      : HANDLE_CUDA_IPC;
	handle->base = said->base;
	handle->size_bytes = said->size;
	handle->buffer_id = said->buffer_id;
	memcpy(handle->uuid, said->uuid, sizeof(handle->uuid));
	memcpy(handle->ipc, said->ipc, sizeof(handle->ipc));
	handle->fds = malloc((said->chunks + 1u) * sizeof(*handle->fds));
	handle->chunk_bytes = calloc(said->chunks + 1u, sizeof(*handle->chunk_bytes));
	if (!handle->fds || !handle->chunk_bytes) {
		return error_set(err, -ENOMEM, "out of memory");
	}
	handle->nchunks = said->chunks;
	for (uint32_t i = 0; i < said->chunks; i++) {
		handle->fds[i] = -1;
	}
	return 0;
}

static int take_allocation(struct session *session, struct message *message, struct error *err)
{
	const struct msg_allocation *said = &message->u.allocation;
	struct exports *exports = session_exports(session);
	struct handle *handle;
	int rc;

	if (said->index != session->allocation || said->index >= exports->nhandles ||
		said->first_chunk != session->chunk) {
		return error_set(err, -EPROTO,
			"allocation %u chunk %u came where allocation %u chunk %u of %zu "
			"allocations "
			"was due",
			said->index, said->first_chunk, session->allocation, session->chunk,
			exports->nhandles);
	}
	if (message->nfds != said->nchunk_bytes) {
		return error_set(err, -EPROTO, "allocation %u: %u descriptors for %zu chunks",
			said->index, message->nfds, said->nchunk_bytes);
	}
	/* A frame that brings none of the announced chunks would begin the allocation again. */
	if (said->chunks && message->nfds == 0) {
		return error_set(err, -EPROTO, "allocation %u: none of its %u chunks came",
			said->index, said->chunks);
	}
	handle = &exports->handles[said->index];
	if (said->first_chunk == 0) {
		rc = begin_handle(handle, said, err);
		if (rc) {
			return rc;
		}
	}
	session->chunks += message->nfds;
	if (session->chunks > LIMIT_CHUNKS || message->nfds > handle->nchunks - session->chunk) {
		return error_set(err, -E2BIG,
			"allocation %u: more chunks than announced, or than %u", said->index,
			LIMIT_CHUNKS);
	}
	for (unsigned i = 0; i < message->nfds; i++) {
		handle->fds[session->chunk] = fd_take(&message->fds[i]);
		handle->chunk_bytes[session->chunk] = said->chunk_bytes[i];
		session->chunk++;
	}
	if (session->chunk == handle->nchunks) {
		session->allocation++;
		session->chunk = 0;
	}
	return 0;
}

static int take_part(struct session *session, const struct msg_part *part, struct error *err)
{
	uint32_t due = session->worker ? PART_LAYOUT : PART_DECLARATION;

	if (part->of != due) {
		return error_set(err, -EPROTO, "a part of kind %u came where kind %u was due",
			part->of, due);
	}
	return blob_append(&session->blob, part, err);
}

static int take_seal(struct session *session, const struct message *message,
	enum session_verdict *ret_verdict, struct error *err)
{
	const struct msg_seal *seal = &message->u.seal;
	int rc;

	if (session->allocation != session_exports(session)->nhandles) {
		return error_set(err, -EPROTO, "seal came after %u of %zu allocations",
			session->allocation, session_exports(session)->nhandles);
	}
	rc = blob_check(&session->blob, seal->parts, seal->bytes, seal->hash, err);
	if (rc) {
		return rc;
	}
	if (session->worker) {
		layout_finish(&session->worker->layout);
		rc = blob_to_layout(
			&session->blob, session->reg.partial, &session->worker->layout, err);
		if (rc) {
			layout_init(&session->worker->layout);
		}
		*ret_verdict = VERDICT_WORKER;
	} else {
		manifest_finish(&session->holder->declared);
		rc = blob_to_declaration(&session->blob, session->trainer.rank,
			&session->holder->declared, &session->holder->sources, err);
		if (rc) {
			manifest_init(&session->holder->declared);
		}
		*ret_verdict = VERDICT_HOLDER;
	}
	if (rc) {
		return rc;
	}
	blob_finish(&session->blob);
	session->seal_serial = message->serial;
	session->state = SESSION_SEALED;
	return 0;
}

static int dispatch(struct session *session, struct message *message, const char *backend,
	enum session_verdict *ret_verdict, struct error *err)
{
	switch (message->type) {
	case MSG_HELLO:
		*ret_verdict = VERDICT_WELCOME;
		return take_hello(session, message, backend, err);
	case MSG_REGISTER:
		return take_register(session, &message->u.reg, err);
	case MSG_TRAINER:
		return take_trainer(session, &message->u.trainer, err);
	case MSG_ALLOCATION:
		return take_allocation(session, message, err);
	case MSG_PART:
		return take_part(session, &message->u.part, err);
	case MSG_SEAL:
		return take_seal(session, message, ret_verdict, err);
	case MSG_WITHDRAW:
		session->state = SESSION_LEAVING;
		*ret_verdict = VERDICT_WITHDRAW;
		return 0;
	case MSG_CHECKED:
		*ret_verdict = VERDICT_CHECKED;
		return 0;
	case MSG_APPLIED_ROUTE:
		*ret_verdict = VERDICT_PULLED;
		return 0;
	case MSG_READY:
		*ret_verdict = VERDICT_READY;
		return 0;
	case MSG_RESUME:
		*ret_verdict = VERDICT_RESUME;
		return 0;
	case MSG_PUBLISH:
		*ret_verdict = VERDICT_PUBLISH;
		return 0;
	case MSG_PUT:
		*ret_verdict = VERDICT_PUT;
		return 0;
	case MSG_CANCEL:
		*ret_verdict = VERDICT_CANCEL;
		return 0;
	case MSG_SUBSET:
		*ret_verdict = VERDICT_SUBSET;
		return 0;
	case MSG_STATUS:
		*ret_verdict = VERDICT_STATUS;
		return 0;
	case MSG_PROGRESS:
		*ret_verdict = VERDICT_PROGRESS;
		return 0;
	case MSG_EVENTS:
		*ret_verdict = VERDICT_EVENTS;
		return 0;
	case MSG_EXPLAIN:
		*ret_verdict = VERDICT_EXPLAIN;
		return 0;
	case MSG_LAYOUT:
		*ret_verdict = VERDICT_LAYOUT;
		return 0;
	case MSG_READ:
		*ret_verdict = VERDICT_READ;
		return 0;
	default:
		return error_set(err, -EPROTO, "message %s", message_name(message->type));
	}
}

int session_receive(struct session *session, struct message *message, const char *backend,
	enum session_verdict *ret_verdict, struct error *err)
{
	enum session_verdict verdict = VERDICT_NONE;
	int rc;

	*ret_verdict = VERDICT_NONE;
	rc = check_allowed(session, message->type, err);

	if (rc) {
		return rc;
	}
	if (session->state == SESSION_FILLING && session->failed.code) {
		if (message->type != MSG_SEAL) {
			return 0;
		}
		*err = session->failed;
		session_reset(session);
		return err->code;
	}
	rc = dispatch(session, message, backend, &verdict, err);
	if (rc && rc != -EPROTO && session->state == SESSION_FILLING) {
		if (message->type != MSG_SEAL) {
			session->failed = *err;
			return 0;
		}
		session_reset(session);
	}
	if (rc == 0) {
		*ret_verdict = verdict;
	}
	return rc;
}

void session_reset(struct session *session)
{
	if (session->worker) {
		worker_finish(session->worker);
		free(session->worker);
		session->worker = NULL;
	}
	if (session->holder) {
		holder_finish(session->holder);
		free(session->holder);
		session->holder = NULL;
	}
	blob_finish(&session->blob);
	session->allocation = session->chunk = session->chunks = 0;
	if (session->state != SESSION_HELLO) {
		session->state = SESSION_OPEN;
	}
}

void session_refuse(struct session *session, const struct error *err)
{
	session_reset(session);
	session->state = SESSION_FILLING;
	session->failed = *err;
}

void session_finish(struct session *session)
{
	session_reset(session);
}
