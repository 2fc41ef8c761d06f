/* Registrations and declarations that are refused: by name, and without harm to what stands. */
#include "base/util.h"
#include "broker/one.h"
#include "broker/peers.h"
#include "gpu/gpu.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const struct rows whole[] = {{"w", STREW_F32, 16, 32, 0, 16}};
static const struct rows upper[] = {{"w", STREW_F32, 16, 32, 0, 8}};
static const struct rows lower[] = {{"w", STREW_F32, 16, 32, 8, 8}};

/* After every case a whole update commits, and nothing is left of it either. */
static int check(void **state)
{
	static uint64_t version;
	struct trainer trainer;
	struct worker worker;

	(void)state;
	assert_int_equal(worker_start(&worker, &one_broker,
				 (struct strew_agent_options){.model = "check"}, whole, 1),
		0);
	assert_int_equal(trainer_start(&trainer, &one_broker,
				 (struct strew_trainer_options){.model = "check"}, whole, 1),
		0);
	trainer_commits(&trainer, ++version);
	worker_holds(&worker, version);
	trainer_stop(&trainer);
	worker_stop(&worker);
	broker_check(&one_broker);
	return 0;
}

static void test_places(void **state)
{
	struct draft draft, theirs;
	struct raw first, other;

	(void)state;
	draft_worker(&theirs, "m", upper, 1);
	theirs.reg.members = 2;
	raw_open(&first, &one_broker, ROLE_WORKER);
	draft_register(&first, &theirs);
	draft_worker(&draft, "m", upper, 1);
	draft.reg.members = 2;
	/* Everything that this one says wrongly is told in its answers, and it may try again. */
	raw_open(&other, &one_broker, ROLE_WORKER);
	draft_refused(&other, &draft, -EEXIST, "model m replica 0 part 0: member 0");
	draft.reg.member = 1;
	draft.reg.gate = STREW_GATE_HELD;
	draft_refused(&other, &draft, -EINVAL, "live gate");
	draft.reg.gate = STREW_GATE_LIVE;
	draft.reg.apply = STREW_APPLY_STAGED;
	draft_refused(&other, &draft, -EINVAL, "direct apply");
	draft.reg.apply = STREW_APPLY_DIRECT;
	draft.reg.members = 3;
	draft_refused(&other, &draft, -EINVAL, "2 members");
	draft.reg.members = 2;
	draft_register(&other, &draft);
	assert_int_equal(broker_group_state(&one_broker, "m"), STREW_GROUP_CURRENT);
	raw_close(&other);
	raw_close(&first);
	draft_finish(&draft);
	draft_finish(&theirs);
}

/* Claims n rows of 128 bytes of another's file, which is said to have `size`; code 0: it may. */
static void claim(const struct draft *owner, uint64_t offset, uint64_t n, uint64_t size, int code,
	struct raw *ret_raw)
{
	const struct rows rows = {"b", STREW_F32, n, 32, 0, n};
	struct draft draft;

	draft_worker_at(&draft, "claimant", offset, &rows, 1);
	close(draft.fd);
	draft.fd = fcntl(owner->fd, F_DUPFD_CLOEXEC, 0);
	assert_true(draft.fd >= 0);
	draft.allocation.size = size;
	raw_open(ret_raw, &one_broker, ROLE_WORKER);
	if (code) {
		draft_refused(ret_raw, &draft, code,
			"parameter b lies in memory that another worker has registered (as w)");
	} else {
		draft_register(ret_raw, &draft);
	}
	draft_finish(&draft);
}

static void test_memory_of_another_worker(void **state)
{
	struct raw owner_raw, raw, neighbour;
	struct draft owner;
	uint64_t size;

	(void)state;
	draft_worker_at(&owner, "m", 4096, upper, 1); /* 8 rows of 128 bytes */
	size = owner.allocation.size;
	raw_open(&owner_raw, &one_broker, ROLE_WORKER);
	draft_register(&owner_raw, &owner);
	claim(&owner, 0, 64, size, -EEXIST, &raw);
	raw_close(&raw);
	/* Whatever size is said, the file is the same. */
	claim(&owner, 0, 64, size - 4096, -EEXIST, &raw);
	raw_close(&raw);
	claim(&owner, 3072 + 4, 8, size, -EEXIST, &raw);
	raw_close(&raw);
	claim(&owner, 5120 - 4, 8, size, -EEXIST, &raw);
	raw_close(&raw);
	claim(&owner, 3072, 8, 8192, 0, &raw);
	raw_close(&raw);
	claim(&owner, 5120, 8, size, 0, &neighbour);
	assert_int_equal(broker_group_state(&one_broker, "m"), STREW_GROUP_CURRENT);
	raw_close(&owner_raw);
	broker_wait_state(&one_broker, "m", STREW_GROUP_LOST);
	raw_close(&neighbour);
	broker_wait_state(&one_broker, "claimant", STREW_GROUP_LOST);
	claim(&owner, 4096, 16, size, 0, &raw);
	raw_close(&raw);
	draft_finish(&owner);
}

/* A registration that a test has made unusable: refused, then the place is free for a good one. */
static void refuse_memory(struct draft *draft, int code, const char *word)
{
	struct draft good;
	struct raw raw;

	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_refused(&raw, draft, code, word);
	raw_close(&raw);
	draft_finish(draft);
	draft_worker(&good, "m", whole, 1);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_register(&raw, &good);
	raw_close(&raw);
	draft_finish(&good);
}

static void test_memory_that_cannot_be_mapped(void **state)
{
	struct draft draft;
	int pipes[2];

	(void)state;
	draft_worker(&draft, "m", whole, 1);
	close(draft.fd);
	draft.fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(draft.fd, (off_t)draft.allocation.size), 0);
	refuse_memory(&draft, -EINVAL, "not sealed");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.size *= 2;
	refuse_memory(&draft, -EINVAL, "131072 were claimed");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.size = UINT64_MAX;
	refuse_memory(&draft, -EINVAL, "allocation 0");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.base = UINT64_MAX - 16;
	refuse_memory(&draft, -EINVAL, "allocation 0");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.size = (uint64_t)1 << 62;
	draft.allocation.base = (uint64_t)1 << 62;
	refuse_memory(&draft, -EINVAL, "claimed");
	draft_worker(&draft, "m", whole, 1);
	close(draft.fd);
	draft.fd = open("/dev/zero", O_RDWR | O_CLOEXEC);
	refuse_memory(&draft, -EINVAL, "memfd");
	draft_worker(&draft, "m", whole, 1);
	close(draft.fd);
	assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
	draft.fd = pipes[0];
	close(pipes[1]);
	refuse_memory(&draft, -EINVAL, "memfd");
	/* Sealed against writing, which a worker's memory cannot be. */
	draft_worker(&draft, "m", whole, 1);
	close(draft.fd);
	draft.fd = memfd_create("read-only", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(draft.fd, (off_t)draft.allocation.size), 0);
	assert_int_equal(
		fcntl(draft.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
	refuse_memory(&draft, -EPERM, "allocation 0");
	/* Kinds of the other backend. */
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.kind = HANDLE_CUDA_VMM;
	refuse_memory(&draft, -ENOTSUP, "allocation 0");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.kind = HANDLE_CUDA_IPC;
	refuse_memory(&draft, -ENOTSUP, "allocation 0");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.size = 0;
	refuse_memory(&draft, -E2BIG, "allocation 0");
}

static void test_places_outside_the_memory(void **state)
{
	static const struct rows large[] = {
		{"w", STREW_F32, 16, 32, 0, 16}, {"outside", STREW_F32, 256, 64, 0, 256}};
	struct draft draft;
	struct raw raw;

	(void)state;
	/* The second ends 2 KiB behind the 64 KiB. */
	draft_worker(&draft, "m", large, 2);
	refuse_memory(&draft, -ERANGE, "parameter outside");
	draft_worker(&draft, "m", whole, 1);
	draft.allocation.size = 16 * 32 * 4 - 1;
	refuse_memory(&draft, -ERANGE, "parameter w");
	draft_trainer(&draft, "m", 0, large, 2);
	raw_open(&raw, &one_broker, ROLE_TRAINER);
	draft_refused(&raw, &draft, -ERANGE, "tensor outside");
	raw_close(&raw);
	draft_finish(&draft);
}

static void test_trainers(void **state)
{
	struct draft first, other;
	struct raw raws[3];
	struct message message;

	(void)state;
	draft_trainer(&first, "m", 0, upper, 1);
	draft_trainer(&other, "m", 1, lower, 1);
	first.trainer.ranks = other.trainer.ranks = 2;
	for (unsigned i = 0; i < 3; i++) {
		raw_open(&raws[i], &one_broker, ROLE_TRAINER);
	}
	draft_send(&raws[0], &first);
	raw_expect_silence(&raws[0], 50); /* until the other rank has declared */
	draft_refused(&raws[1], &first, -EEXIST, "trainer rank 0");
	other.trainer.ranks = 3;
	draft_refused(&raws[1], &other, -EINVAL, "2 trainer ranks");
	other.trainer.ranks = 2;
	draft_register(&raws[1], &other);
	raw_expect(&raws[0], MSG_DECLARED, &message);
	assert_int_equal(message.u.declared.tensors, 1);
	assert_int_equal(message.u.declared.bytes, 16 * 32 * 4);
	message_finish(&message);
	draft_refused(&raws[2], &other, -EEXIST, "trainer rank 1");
	/* Without its other half the manifest is none, and nothing can be published. */
	raw_close(&raws[1]);
	for (unsigned i = 0; i < 2; i++) {
		sleep_ms(20);
		message_init(&message, MSG_PUBLISH, 77);
		message.u.publish.version = 1;
		raw_send(&raws[0], &message);
		raw_expect_error(&raws[0], -EBUSY, "not every rank");
	}
	draft_register(&raws[2], &other);
	raw_close(&raws[2]);
	raw_close(&raws[0]);
	draft_finish(&first);
	draft_finish(&other);
}

/* Ranks that do not agree, or leave holes, are all told so. */
static void test_manifests_that_do_not_join(void **state)
{
	static const struct rows narrow[] = {{"w", STREW_F32, 16, 16, 8, 8}};
	static const struct rows other_type[] = {{"w", STREW_I32, 16, 32, 8, 8}};
	static const struct rows hole[] = {{"w", STREW_F32, 16, 32, 9, 7}};
	static const struct rows *const seconds[] = {narrow, other_type, hole};

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(seconds); i++) {
		struct draft drafts[2];
		struct raw raws[2];

		draft_trainer(&drafts[0], "m", 0, upper, 1);
		draft_trainer(&drafts[1], "m", 1, seconds[i], 1);
		for (uint32_t rank = 0; rank < 2; rank++) {
			drafts[rank].trainer.ranks = 2;
			raw_open(&raws[rank], &one_broker, ROLE_TRAINER);
			draft_send(&raws[rank], &drafts[rank]);
			if (rank == 0) {
				raw_expect_silence(&raws[0], 20);
			}
		}
		for (unsigned rank = 0; rank < 2; rank++) {
			raw_expect_error(&raws[rank], -EINVAL, "tensor w");
			raw_close(&raws[rank]);
			draft_finish(&drafts[rank]);
		}
	}
}

/* Gone in the middle: of its allocations, its parts, its mapping, with the place reserved. */
static void test_registrations_that_stop(void **state)
{
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	for (unsigned i = 0; i < 40; i++) {
		draft_worker(&draft, "m", whole, 1);
		raw_open(&raw, &one_broker, ROLE_WORKER);
		if (i % 2) {
			draft_send(&raw, &draft);
		} else {
			message_init(&message, MSG_REGISTER, 5);
			message.u.reg = draft.reg;
			message.u.reg.allocations = 2;
			raw_send(&raw, &message);
		}
		if (i % 4 == 0) {
			uint64_t bytes[2] = {4096, 4096};

			message_init(&message, MSG_ALLOCATION, 5);
			message.u.allocation = draft.allocation;
			message.u.allocation.kind = HANDLE_CUDA_VMM;
			message.u.allocation.chunks = 4;
			message.u.allocation.chunk_bytes = bytes;
			message.u.allocation.nchunk_bytes = 2;
			message.fds[0] = dup(draft.fd);
			message.fds[1] = dup(draft.fd);
			message.nfds = 2;
			raw_send(&raw, &message);
		}
		raw_close(&raw);
		draft_finish(&draft);
	}
}

/* The same frame again and again, whose chunks never come. */
static void test_chunks_that_never_come(void **state)
{
	struct message message;
	struct error err = {0};
	struct draft draft;
	struct raw raw;
	int rc = 0;

	(void)state;
	draft_worker(&draft, "m", whole, 1);
	raw_open(&raw, &one_broker, ROLE_WORKER);
	message_init(&message, MSG_REGISTER, 5);
	message.u.reg = draft.reg;
	raw_send(&raw, &message);
	/* Either end may notice first. */
	for (unsigned i = 0; i < 50 && rc == 0; i++) {
		message_init(&message, MSG_ALLOCATION, 5);
		message.u.allocation = draft.allocation;
		message.u.allocation.kind = HANDLE_CUDA_VMM;
		message.u.allocation.chunks = LIMIT_CHUNKS;
		rc = conn_send_wait(raw.conn, &message, 0, &err);
	}
	raw_close(&raw);
	draft_finish(&draft);
}

static void test_requests_out_of_place(void **state)
{
	static const enum message_type worker_types[] = {MSG_PUBLISH, MSG_TRAINER, MSG_SEAL};
	static const enum message_type trainer_types[] = {
		MSG_REGISTER, MSG_RESUME, MSG_READY, MSG_CHECKED, MSG_WITHDRAW};
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	for (size_t i = 0; i < ARRAY_LEN(worker_types) + ARRAY_LEN(trainer_types); i++) {
		bool worker = i < ARRAY_LEN(worker_types);
		enum message_type type =
			worker ? worker_types[i] : trainer_types[i - ARRAY_LEN(worker_types)];

		raw_open(&raw, &one_broker, worker ? ROLE_WORKER : ROLE_TRAINER);
		if (worker) {
			draft_worker(&draft, "m", whole, 1);
		} else {
			draft_trainer(&draft, "m", 0, whole, 1);
		}
		draft_register(&raw, &draft);
		message_init(&message, type, 9);
		message.u.reg.gate = message.u.reg.apply = STREW_GATE_LIVE;
		raw_send(&raw, &message);
		raw_expect_error(&raw, -EPROTO, message_name(type));
		raw_expect_end(&raw);
		raw_close(&raw);
		draft_finish(&draft);
	}
}

/* Withdrawn is withdrawn: the same connection may register again, for another place. */
static void test_withdraw_and_register_again(void **state)
{
	struct message message;
	struct draft draft;
	struct raw raw;

	(void)state;
	raw_open(&raw, &one_broker, ROLE_WORKER);
	draft_worker(&draft, "m", whole, 1);
	for (uint32_t i = 0; i < 20; i++) {
		draft.reg.replica = i % 3;
		draft.reg.apply = i % 2 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT;
		draft_register(&raw, &draft);
		/* A ready word that comes after the withdrawing is nobody's. */
		message_init(&message, MSG_WITHDRAW, 50 + i);
		raw_send(&raw, &message);
		raw_expect(&raw, MSG_OK, &message);
		assert_int_equal(message.serial, 50 + i);
		message_finish(&message);
		assert_int_equal(broker_group_state(&one_broker, "m"), 0);
	}
	draft_finish(&draft);
	raw_close(&raw);
}

#define CASE(name) cmocka_unit_test_teardown(name, check)

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_places),
		CASE(test_memory_of_another_worker),
		CASE(test_memory_that_cannot_be_mapped),
		CASE(test_places_outside_the_memory),
		CASE(test_trainers),
		CASE(test_manifests_that_do_not_join),
		CASE(test_registrations_that_stop),
		CASE(test_chunks_that_never_come),
		CASE(test_requests_out_of_place),
		CASE(test_withdraw_and_register_again),
	};

	return test_finish(cmocka_run_group_tests(tests, one_start, one_finish), test_fds_at_start);
}
