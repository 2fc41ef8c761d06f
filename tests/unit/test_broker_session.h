/*
 * A session at a desk: what the tests of broker/session.c share. Messages are given as the
 * broker gives them, descriptors and all, and whole registrations are at hand.
 */
#ifndef UNIT_TEST_BROKER_SESSION_H
#define UNIT_TEST_BROKER_SESSION_H

#include "support/test_main.h"

#include "base/util.h"
#include "broker/session.h"
#include "ipc/socket.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE_BYTES 4096u

/* What a test keeps beside the session: the last answer, and blobs that are whole. */
struct desk {
	struct session session;
	struct error err;
	enum session_verdict verdict;
	const char *backend;
	struct blob layout, declaration;
};

/* A parameter of 8 x 16 f32 that takes rows 8 to 16 of a tensor of 16 x 16. */
static inline void make_layout(struct blob *ret_blob, unsigned parameters)
{
	struct tensor tensor = {.name = "t", .dtype = STREW_F32, .ndim = 2, .shape = {16, 16}};
	struct parameter parameter = {
		.dtype = STREW_F32, .ndim = 2, .shape = {8, 16}, .stride = {16, 1}};
	struct piece piece = {
		.ndim = 2, .view = {16, 16}, .box = {{8, 0}, {8, 16}}, .stride = {16, 1}};
	struct layout layout;
	struct error err;

	layout_init(&layout);
	for (unsigned i = 0; i < parameters; i++) {
		char name[16];

		snprintf(name, sizeof(name), "p%u", i);
		parameter.name = name;
		assert_int_equal(
			layout_add_parameter(&layout, &parameter, &piece.parameter, &err), 0);
		if (i == 0) {
			assert_int_equal(
				layout_add_tensor(&layout, &tensor, &piece.tensor, &err), 0);
			assert_int_equal(layout_add_piece(&layout, &piece, &err), 0);
		}
	}
	assert_int_equal(layout_seal(&layout, true, &err), 0);
	assert_int_equal(blob_from_layout(&layout, ret_blob, &err), 0);
	layout_finish(&layout);
}

static inline void make_declaration(struct blob *ret_blob)
{
	struct tensor tensor = {.name = "t", .dtype = STREW_F32, .ndim = 2, .shape = {16, 16}};
	struct held_box box = {.box = {{0, 0}, {16, 16}}};
	struct source source = {.stride = {16, 1}};
	struct manifest manifest;
	struct error err;

	manifest_init(&manifest);
	assert_int_equal(manifest_add_tensor(&manifest, &tensor, &box.tensor, &err), 0);
	assert_int_equal(manifest_add_box(&manifest, &box, &err), 0);
	assert_int_equal(blob_from_manifest(&manifest, &source, ret_blob, &err), 0);
	manifest_finish(&manifest);
}

static inline int set_up(void **state)
{
	struct desk *desk = calloc(1, sizeof(*desk));

	assert_non_null(desk);
	desk->backend = "host";
	make_layout(&desk->layout, 1);
	make_declaration(&desk->declaration);
	*state = desk;
	return 0;
}

static inline int tear_down(void **state)
{
	struct desk *desk = *state;

	session_finish(&desk->session);
	blob_finish(&desk->layout);
	blob_finish(&desk->declaration);
	free(desk);
	return 0;
}

/* Gives the message as the broker does, descriptors and all. */
static inline int give(struct desk *desk, struct message *message)
{
	int rc;

	error_clear(&desk->err);
	rc = session_receive(&desk->session, message, desk->backend, &desk->verdict, &desk->err);
	message_finish(message);
	if (rc) {
		assert_true(rc < 0);
		assert_int_equal(desk->verdict, VERDICT_NONE);
		assert_true(desk->err.text[0]);
	}
	return rc;
}

static inline int give_type(struct desk *desk, enum message_type type)
{
	struct message message;

	message_init(&message, type, 1);
	return give(desk, &message);
}

static inline int give_hello(struct desk *desk, enum role role)
{
	struct message message;

	message_init(&message, MSG_HELLO, 1);
	message.u.hello.protocol = PROTOCOL_VERSION;
	message.u.hello.role = role;
	message.u.hello.pid_namespace = socket_pid_namespace();
	return give(desk, &message);
}

static inline int give_register(struct desk *desk, uint32_t allocations)
{
	struct message message;

	message_init(&message, MSG_REGISTER, 2);
	message.u.reg = (struct msg_register){.model = "m",
		.members = 1,
		.gate = STREW_GATE_LIVE,
		.apply = STREW_APPLY_DIRECT,
		.allocations = allocations};
	return give(desk, &message);
}

static inline int give_trainer(struct desk *desk, uint32_t allocations)
{
	struct message message;

	message_init(&message, MSG_TRAINER, 2);
	message.u.trainer =
		(struct msg_trainer){.model = "m", .ranks = 1, .allocations = allocations};
	return give(desk, &message);
}

/* `fds` descriptors come in this frame, and as many lengths. */
static inline int give_allocation(struct desk *desk, enum handle_kind kind, uint32_t index,
	uint32_t first_chunk, uint32_t chunks, unsigned fds)
{
	struct msg_allocation *said;
	struct message message;

	message_init(&message, MSG_ALLOCATION, 2);
	said = &message.u.allocation;
	said->index = index;
	said->kind = kind;
	said->base = 0x10000;
	said->size = SIZE_BYTES;
	said->first_chunk = first_chunk;
	said->chunks = chunks;
	said->nchunk_bytes = fds;
	said->chunk_bytes = fds ? calloc(fds, sizeof(*said->chunk_bytes)) : NULL;
	for (message.nfds = 0; message.nfds < fds; message.nfds++) {
		message.fds[message.nfds] = memfd_create("test", MFD_CLOEXEC);
		assert_true(message.fds[message.nfds] >= 0);
		said->chunk_bytes[message.nfds] = SIZE_BYTES;
	}
	return give(desk, &message);
}

static inline int give_memfd(struct desk *desk, uint32_t index)
{
	return give_allocation(desk, HANDLE_MEMFD, index, 0, 1, 1);
}

static inline int give_part(
	struct desk *desk, enum part_of of, uint32_t number, const uint8_t *bytes, size_t nbytes)
{
	struct message message;

	message_init(&message, MSG_PART, 2);
	message.u.part.of = of;
	message.u.part.number = number;
	message.u.part.bytes = bytes;
	message.u.part.nbytes = nbytes;
	return give(desk, &message);
}

static inline int give_blob(struct desk *desk, enum part_of of, const struct blob *blob)
{
	return give_part(desk, of, 0, blob->bytes, blob->len);
}

static inline int give_seal(struct desk *desk, const struct blob *blob)
{
	struct message message;

	message_init(&message, MSG_SEAL, 3);
	message.u.seal.parts = 1;
	message.u.seal.bytes = blob->len;
	message.u.seal.hash = blob_hash(blob);
	return give(desk, &message);
}

static inline void open_as(struct desk *desk, enum role role)
{
	session_finish(&desk->session);
	memset(&desk->session, 0, sizeof(desk->session));
	assert_int_equal(give_hello(desk, role), 0);
	assert_int_equal(desk->verdict, VERDICT_WELCOME);
	assert_int_equal(desk->session.state, SESSION_OPEN);
}

/* Up to one allocation that is still due. */
static inline void fill_as(struct desk *desk, enum role role)
{
	open_as(desk, role);
	assert_int_equal(role == ROLE_WORKER ? give_register(desk, 1) : give_trainer(desk, 1), 0);
	assert_int_equal(desk->session.state, SESSION_FILLING);
}

static inline int give_whole_blob(struct desk *desk, enum role role)
{
	return role == ROLE_WORKER ? give_blob(desk, PART_LAYOUT, &desk->layout)
				   : give_blob(desk, PART_DECLARATION, &desk->declaration);
}

static inline int give_right_seal(struct desk *desk, enum role role)
{
	return give_seal(desk, role == ROLE_WORKER ? &desk->layout : &desk->declaration);
}

static inline void seal_as(struct desk *desk, enum role role)
{
	assert_int_equal(give_memfd(desk, 0), 0);
	assert_int_equal(give_whole_blob(desk, role), 0);
	assert_int_equal(give_right_seal(desk, role), 0);
	assert_int_equal(desk->verdict, role == ROLE_WORKER ? VERDICT_WORKER : VERDICT_HOLDER);
	assert_int_equal(desk->session.state, SESSION_SEALED);
	assert_int_equal(desk->session.seal_serial, 3);
}

/* Every state that the role can reach; LIVE is what the broker sets after mapping. */
static inline void bring_to(struct desk *desk, enum role role, enum session_state state)
{
	if (state == SESSION_HELLO) {
		session_finish(&desk->session);
		memset(&desk->session, 0, sizeof(desk->session));
		return;
	}
	open_as(desk, role);
	if (state == SESSION_OPEN) {
		return;
	}
	fill_as(desk, role);
	if (state == SESSION_FILLING) {
		return;
	}
	seal_as(desk, role);
	if (state >= SESSION_LIVE) {
		desk->session.state = SESSION_LIVE;
	}
	if (state == SESSION_LEAVING && role == ROLE_WORKER) {
		assert_int_equal(give_type(desk, MSG_WITHDRAW), 0);
		assert_int_equal(desk->verdict, VERDICT_WITHDRAW);
	}
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

#endif
