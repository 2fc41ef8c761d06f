/*
 * The broker's side of a Unix connection as a pure machine: every message in every state
 * against a table that was written from docs/protocol.md, and a random walk.
 */
#include "test_broker_session.h"

/*
 * By docs/protocol.md, a column a state in the order of enum session_state: '.' breaks the
 * protocol, '*' is for all roles, 'w' for workers, 't' for trainers, 'o' for observers.
 */
static const struct {
	unsigned type;
	const char *states;
	enum session_verdict verdict;
} expected[] = {
	{MSG_HELLO, "*.....", VERDICT_WELCOME},
	{MSG_REGISTER, ".w....", VERDICT_NONE},
	{MSG_TRAINER, ".t....", VERDICT_NONE},
	{MSG_ALLOCATION, "..*...", VERDICT_NONE},
	{MSG_PART, "..*...", VERDICT_NONE},
	{MSG_SEAL, "..*...", VERDICT_NONE /* by role */},
	{MSG_WITHDRAW, "....w.", VERDICT_WITHDRAW},
	{MSG_CHECKED, ".w..ww", VERDICT_CHECKED},
	{MSG_APPLIED_ROUTE, ".w..ww", VERDICT_PULLED},
	{MSG_READY, "....ww", VERDICT_READY},
	{MSG_RESUME, "....w.", VERDICT_RESUME},
	{MSG_PUBLISH, "....t.", VERDICT_PUBLISH},
	{MSG_SUBSET, "....t.", VERDICT_SUBSET},
	{MSG_PUT, "....t.", VERDICT_PUT},
	{MSG_CANCEL, "....t.", VERDICT_CANCEL},
	{MSG_STATUS, ".*..*.", VERDICT_STATUS},
	{MSG_PROGRESS, ".*..*.", VERDICT_PROGRESS},
	{MSG_EVENTS, ".*..*.", VERDICT_EVENTS},
	{MSG_EXPLAIN, ".*..*.", VERDICT_EXPLAIN},
	{MSG_LAYOUT, ".o....", VERDICT_LAYOUT},
	{MSG_READ, ".o....", VERDICT_READ},
};

static int give_good(struct desk *desk, unsigned type, enum role role)
{
	switch (type) {
	case MSG_HELLO:
		return give_hello(desk, role);
	case MSG_REGISTER:
		return give_register(desk, 1);
	case MSG_TRAINER:
		return give_trainer(desk, 1);
	case MSG_ALLOCATION:
		return give_memfd(desk, 0);
	case MSG_PART:
		return give_whole_blob(desk, role);
	case MSG_SEAL:
		if (desk->session.state == SESSION_FILLING) {
			assert_int_equal(give_memfd(desk, 0), 0);
			assert_int_equal(give_whole_blob(desk, role), 0);
		}
		return give_right_seal(desk, role);
	default:
		return give_type(desk, (enum message_type)type);
	}
}

static void check_cell(struct desk *desk, unsigned type, enum role role, enum session_state state)
{
	enum session_verdict verdict = VERDICT_NONE;
	char cell = '.';
	int rc;

	for (size_t i = 0; i < ARRAY_LEN(expected); i++) {
		if (expected[i].type == type) {
			cell = expected[i].states[state];
			verdict = expected[i].verdict;
		}
	}
	if (type == MSG_SEAL) {
		verdict = role == ROLE_WORKER ? VERDICT_WORKER : VERDICT_HOLDER;
	}
	bring_to(desk, role, state);
	rc = give_good(desk, type, role);
	if (cell == '*' || (cell == 'w' && role == ROLE_WORKER) ||
		(cell == 't' && role == ROLE_TRAINER) || (cell == 'o' && role == ROLE_OBSERVER)) {
		assert_int_equal(rc, 0);
		assert_int_equal(desk->verdict, verdict);
		return;
	}
	assert_int_equal(rc, -EPROTO);
	assert_int_equal(desk->session.state, state);
	assert_non_null(strstr(desk->err.text, message_name(type)));
}

static void test_every_message_in_every_state(void **state)
{
	struct desk *desk = *state;

	for (unsigned type = 0; type <= 101; type++) {
		for (unsigned at = 0; at < SESSION_STATES; at++) {
			check_cell(desk, type, ROLE_WORKER, (enum session_state)at);
			if (at != SESSION_LEAVING) {
				check_cell(desk, type, ROLE_TRAINER, (enum session_state)at);
			}
			if (at <= SESSION_OPEN) {
				check_cell(desk, type, ROLE_OBSERVER, (enum session_state)at);
			}
		}
	}
}

static void test_hello(void **state)
{
	static const enum role roles[] = {ROLE_WORKER, ROLE_TRAINER, ROLE_OBSERVER};
	struct desk *desk = *state;
	struct message message;

	for (size_t i = 0; i < ARRAY_LEN(roles); i++) {
		for (int cuda = 0; cuda < 2; cuda++) {
			bool refused = cuda && roles[i] != ROLE_OBSERVER;

			bring_to(desk, roles[i], SESSION_HELLO);
			desk->backend = cuda ? "cuda" : "host";
			message_init(&message, MSG_HELLO, 1);
			message.u.hello.protocol = PROTOCOL_VERSION;
			message.u.hello.role = roles[i];
			message.u.hello.pid_namespace = socket_pid_namespace() + 1;
			assert_int_equal(give(desk, &message), refused ? -EPROTO : 0);
			assert_int_equal(
				desk->session.state, refused ? SESSION_HELLO : SESSION_OPEN);
			assert_true(!refused || strstr(desk->err.text, "PID namespace"));
		}
	}
	bring_to(desk, ROLE_WORKER, SESSION_HELLO);
	message_init(&message, MSG_HELLO, 1);
	message.u.hello.protocol = PROTOCOL_VERSION + 1;
	message.u.hello.role = ROLE_WORKER;
	assert_int_equal(give(desk, &message), -EPROTO);
	assert_non_null(strstr(desk->err.text, "protocol 2"));
}

static void test_openings_that_make_no_sense(void **state)
{
	static const struct {
		const char *model;
		uint32_t member, members;
	} workers[] = {{"", 0, 1}, {"m", 0, 0}, {"m", 1, 1}, {"m", 0, LIMIT_MEMBERS + 1},
		{"m", UINT32_MAX, UINT32_MAX}};
	static const struct {
		const char *model;
		uint32_t rank, ranks;
	} trainers[] = {{"", 0, 1}, {"m", 0, 0}, {"m", 1, 1}, {"m", 0, LIMIT_RANKS + 1},
		{"m", UINT32_MAX, UINT32_MAX}};
	struct desk *desk = *state;
	struct message message;

	for (size_t i = 0; i < ARRAY_LEN(workers); i++) {
		open_as(desk, ROLE_WORKER);
		message_init(&message, MSG_REGISTER, 2);
		string_copy(message.u.reg.model, LIMIT_MODEL_BYTES, workers[i].model);
		message.u.reg.member = workers[i].member;
		message.u.reg.members = workers[i].members;
		message.u.reg.gate = STREW_GATE_LIVE;
		message.u.reg.apply = STREW_APPLY_STAGED;
		assert_int_equal(give(desk, &message), -EINVAL);
		assert_int_equal(desk->session.state, SESSION_OPEN);
		assert_null(desk->session.worker);
		/* The same connection may do better. */
		assert_int_equal(give_register(desk, 1), 0);
	}
	for (size_t i = 0; i < ARRAY_LEN(trainers); i++) {
		open_as(desk, ROLE_TRAINER);
		message_init(&message, MSG_TRAINER, 2);
		string_copy(message.u.trainer.model, LIMIT_MODEL_BYTES, trainers[i].model);
		message.u.trainer.rank = trainers[i].rank;
		message.u.trainer.ranks = trainers[i].ranks;
		assert_int_equal(give(desk, &message), -EINVAL);
		assert_int_equal(desk->session.state, SESSION_OPEN);
		assert_null(desk->session.holder);
		assert_int_equal(give_trainer(desk, 1), 0);
	}
}

static void walk_allocation(struct desk *desk)
{
	struct session *session = &desk->session;
	bool right = test_random_below(8) > 0;
	uint32_t chunks = (uint32_t)test_random_below(4);

	give_allocation(desk,
		test_random_below(16) ? HANDLE_CUDA_VMM
				      : (enum handle_kind)(1 + test_random_below(4)),
		right ? session->allocation : (uint32_t)test_random_below(3),
		right ? session->chunk : (uint32_t)test_random_below(3), chunks,
		(unsigned)test_random_below(chunks + 2));
}

/* The broker's own steps: mapped or refused, unmapped. */
static void walk_broker(struct desk *desk)
{
	struct session *session = &desk->session;

	if (session->state == SESSION_SEALED) {
		if (test_random_below(4)) {
			session->state = SESSION_LIVE;
		} else {
			session_reset(session);
		}
	} else if (session->state == SESSION_LEAVING) {
		session_reset(session);
	}
}

static void walk_step(struct desk *desk)
{
	enum role role = desk->session.hello.role == ROLE_TRAINER ? ROLE_TRAINER : ROLE_WORKER;
	uint32_t allocations = (uint32_t)test_random_below(4);

	switch (test_random_below(12)) {
	case 0:
		give_hello(desk, (enum role)(1 + test_random_below(3)));
		break;
	case 1:
	case 2:
		if (role == ROLE_WORKER) {
			give_register(desk, allocations);
		} else {
			give_trainer(desk, allocations);
		}
		break;
	case 3:
	case 4:
	case 5:
	case 6:
		walk_allocation(desk);
		break;
	case 7:
		give_whole_blob(desk, role);
		break;
	case 8:
	case 9:
		give_right_seal(desk, role);
		break;
	case 10:
		give_type(desk, (enum message_type)(MSG_WITHDRAW + test_random_below(46)));
		break;
	default:
		walk_broker(desk);
		break;
	}
}

static void test_random_walk(void **state)
{
	struct desk *desk = *state;
	unsigned seen[SESSION_STATES] = {0};

	test_seed();
	for (unsigned i = 0; i < 300000; i++) {
		struct session *session = &desk->session;

		walk_step(desk);
		assert_true((unsigned)session->state < SESSION_STATES);
		seen[session->state]++;
		assert_false(session->worker && session->holder);
		assert_int_equal(
			session->worker || session->holder, session->state >= SESSION_FILLING);
		assert_true(session->chunks <= LIMIT_CHUNKS + LIMIT_FRAME_FDS);
		/* The broker drops who broke the protocol; the machine stands more than that. */
		if (desk->err.code == -EPROTO && test_random_below(32) == 0) {
			session_finish(session);
			memset(session, 0, sizeof(*session));
		}
	}
	for (unsigned i = 0; i < SESSION_STATES; i++) {
		assert_true(seen[i]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		CASE(test_every_message_in_every_state),
		CASE(test_hello),
		CASE(test_openings_that_make_no_sense),
		CASE(test_random_walk),
	};

	return TEST_RUN(tests);
}
