/* Opening, options, names and errors: what both faces share. */
#include "base/util.h"
#include "fake_broker.h"
#include "support/test_main.h"
#include <errno.h>
#include <strew/strew.h>
#include <string.h>
#include <unistd.h>

static int open_at(const char *path, struct strew_agent **ret_agent)
{
	struct strew_agent_options options = {.socket = path, .model = "m", .timeout_ms = 500};

	return strew_agent_open(&options, ret_agent);
}

static void test_nobody(void **arg)
{
	struct strew_agent *agent = NULL;
	char path[300];

	(void)arg;
	assert_int_equal(open_at("/nonexistent/socket", &agent), -ENOENT);
	assert_non_null(strstr(strew_error(), "/nonexistent/socket"));
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(open_at(path, &agent), -ENAMETOOLONG);
	assert_null(agent);
}

static void test_options(void **arg)
{
	struct strew_agent_options options = {.socket = "/nonexistent/socket"};
	struct strew_trainer_options trainer = {.socket = "/nonexistent/socket", .model = "m"};
	struct strew_agent *agent;
	struct strew_trainer *opened;
	char name[200];

	(void)arg;
	assert_int_equal(strew_agent_open(NULL, &agent), -EINVAL);
	assert_int_equal(strew_agent_open(&options, NULL), -EINVAL);
	assert_int_equal(strew_agent_open(&options, &agent), -EINVAL);
	memset(name, 'n', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	options.model = name;
	assert_int_equal(strew_agent_open(&options, &agent), -E2BIG);
	options.model = "m";
	options.member = 1;
	assert_int_equal(strew_agent_open(&options, &agent), -EINVAL);
	options.members = 65;
	assert_int_equal(strew_agent_open(&options, &agent), -EINVAL);
	options.members = 2;
	options.gate = (enum strew_gate)3;
	assert_int_equal(strew_agent_open(&options, &agent), -EINVAL);
	options.gate = STREW_GATE_LIVE;
	options.apply = (enum strew_apply)3;
	assert_int_equal(strew_agent_open(&options, &agent), -EINVAL);
	options.apply = STREW_APPLY_STAGED;
	assert_int_equal(strew_agent_open(&options, &agent), -ENOENT);
	trainer.rank = 1;
	assert_int_equal(strew_trainer_open(&trainer, &opened), -EINVAL);
	trainer.ranks = 257;
	assert_int_equal(strew_trainer_open(&trainer, &opened), -EINVAL);
	strew_agent_close(NULL);
	strew_trainer_close(NULL);
	strew_report_finish(NULL);
	assert_int_equal(strew_agent_fd(NULL), -EINVAL);
	assert_int_equal(strew_trainer_seal(NULL), -EINVAL);
}

static void greet_badly(struct fake *fake, struct message *hello)
{
	struct message message;

	switch (fake->step) {
	case 0:
		fake_error(fake, hello->serial, -EPROTO, "protocol 1 was offered");
		break;
	case 1:
		fake_error(fake, 0, -EPERM, "go away");
		break;
	case 2:
		fake_ok(fake, hello->serial);
		break;
	case 3:
		fake_raw(fake, "220 mail.example.org ESMTP ready\r\n", 34);
		return;
	case 4: /* never answers */
		fake_expect_end(fake);
		return;
	case 5: /* a welcome without a page */
		message_init(&message, MSG_WELCOME, hello->serial);
		message.u.welcome.protocol = PROTOCOL_VERSION;
		strcpy(message.u.welcome.backend, "host");
		fake_send(fake, &message);
		break;
	case 6:
		message_init(&message, MSG_HOLD, 0);
		fake_send(fake, &message);
		break;
	default:
		break;
	}
	fake_drop(fake);
}

static void test_bad_welcome(void **arg)
{
	static const int expected[] = {
		-EPROTO, -EPERM, -EPROTO, -EPROTO, -ETIMEDOUT, -EPROTO, -EPROTO, -ECONNRESET};

	(void)arg;
	for (int i = 0; i < (int)ARRAY_LEN(expected); i++) {
		struct fake fake = {.greeting = greet_badly, .step = i};
		struct strew_agent *agent = NULL;

		fake_start(&fake);
		assert_int_equal(open_at(fake.path, &agent), expected[i]);
		assert_null(agent);
		assert_non_null(strstr(strew_error(), fake.path));
		fake_stop(&fake);
	}
}

static void test_namespaces(void **arg)
{
	struct fake cuda = {.backend = "cuda", .pid_namespace = 1};
	struct fake host = {.backend = "host", .pid_namespace = 1, .script = fake_expect_end};
	struct strew_agent *agent;

	(void)arg;
	fake_start(&cuda);
	assert_int_equal(open_at(cuda.path, &agent), -EPROTO);
	assert_non_null(strstr(strew_error(), "--pid=host"));
	fake_stop(&cuda);
	fake_start(&host);
	assert_int_equal(open_at(host.path, &agent), 0);
	strew_agent_close(agent);
	fake_stop(&host);
}

static void check_declare(struct strew_agent *agent, void *memory)
{
	struct strew_parameter parameter = {
		.name = "p", .data = memory, .dtype = STREW_F16, .ndim = 2, .shape = {4, 4}};
	struct strew_parameter bad;
	uint32_t id = 77;

	bad = parameter;
	bad.data = (void *)16;
	assert_int_equal(strew_agent_declare(agent, &bad, &id), -EFAULT);
	assert_non_null(strstr(strew_error(), "parameter p"));
	bad = parameter;
	bad.shape[0] = 1 << 20;
	assert_int_equal(strew_agent_declare(agent, &bad, &id), -EFAULT);
	bad = parameter;
	bad.name = "";
	assert_int_equal(strew_agent_declare(agent, &bad, &id), -EINVAL);
	bad = parameter;
	bad.ndim = 7;
	assert_int_equal(strew_agent_declare(agent, &bad, &id), -EINVAL);
	assert_int_equal(id, 77);
	assert_int_equal(strew_agent_declare(agent, &parameter, &id), 0);
	assert_int_equal(id, 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &id), -EEXIST);
	/* Nothing at all needs no memory. */
	bad = parameter;
	bad.name = "empty";
	bad.shape[1] = 0;
	bad.data = NULL;
	assert_int_equal(strew_agent_declare(agent, &bad, &id), 0);
	assert_int_equal(id, 1);
}

static void check_pieces(struct strew_agent *agent)
{
	struct strew_piece piece = {
		.tensor = "t", .dtype = STREW_F16, .ndim = 2, .shape = {8, 4}, .start = {4, 0}};
	struct strew_piece bad;

	bad = piece;
	bad.parameter = 9;
	assert_int_equal(strew_agent_piece(agent, &bad), -EINVAL);
	bad = piece;
	bad.start[0] = 9;
	assert_int_equal(strew_agent_piece(agent, &bad), -ERANGE);
	bad = piece;
	bad.offset = 1;
	assert_int_equal(strew_agent_piece(agent, &bad), -ERANGE);
	bad = piece;
	bad.view_ndim = 7;
	assert_int_equal(strew_agent_piece(agent, &bad), -EINVAL);
	bad = piece;
	bad.ndim = -1;
	assert_int_equal(strew_agent_piece(agent, &bad), -EINVAL);
	bad = piece;
	bad.tensor = "u";
	bad.dtype = STREW_F32;
	assert_int_equal(strew_agent_piece(agent, &bad), -ENOTSUP);
	assert_non_null(strstr(strew_error(), "tensor u: the tensor is f32, the parameter f16"));
	bad.tensor = "v";
	bad.dtype = STREW_I8;
	bad.cast = 1;
	assert_int_equal(strew_agent_piece(agent, &bad), -ENOTSUP);
	assert_non_null(strstr(strew_error(), "parameter p, tensor v: a cast of i8 to f16"));
	assert_int_equal(strew_agent_register(agent), -EINVAL);
	assert_non_null(strstr(strew_error(), "parameter p"));
}

static void test_declare(void **arg)
{
	struct fake fake = {.script = fake_expect_end};
	struct strew_agent *agent;
	struct strew_event event;
	void *memory;

	(void)arg;
	fake_start(&fake);
	assert_int_equal(strew_host_alloc(4096, &memory), 0);
	assert_int_equal(open_at(fake.path, &agent), 0);
	check_declare(agent, memory);
	check_pieces(agent);
	assert_int_equal(strew_agent_dispatch(agent, &event), 0);
	assert_int_equal(strew_agent_ready(agent, NULL), -EINVAL);
	assert_int_equal(strew_agent_note_layout(NULL, 0, 0, STREW_PROVED), -EINVAL);
	assert_int_equal(strew_agent_note_layout(agent, 0, 0, (enum strew_proof)3), -EINVAL);
	assert_non_null(strstr(strew_error(), "proof 3"));
	assert_int_equal(strew_agent_note_layout(agent, 3, 2, STREW_UNPROVED), 0);
	strew_agent_close(agent);
	strew_host_free(memory);
	fake_stop(&fake);
}

static void test_names(void **arg)
{
	void *memory;

	(void)arg;
	assert_string_equal(strew_group_state_name(STREW_GROUP_IN_DOUBT), "IN_DOUBT");
	assert_string_equal(strew_group_state_name((enum strew_group_state)0), "unknown");
	assert_string_equal(strew_group_state_name((enum strew_group_state)99), "unknown");
	assert_string_equal(strew_outcome_name(STREW_OUTCOME_SAT_OUT), "sat out");
	assert_string_equal(strew_outcome_name((enum strew_outcome) - 1), "unknown");
	assert_string_equal(strew_dtype_name(STREW_BF16), "bf16");
	assert_int_equal(strew_dtype_size(STREW_F64), 8);
	assert_string_equal(strew_version(), STREW_VERSION);
	assert_int_equal(strew_host_alloc(0, &memory), -EINVAL);
	assert_int_equal(strew_host_alloc(1, NULL), -EINVAL);
	assert_int_equal(strew_host_alloc(SIZE_MAX, &memory), -ENOMEM);
	assert_true(strlen(strew_error()) > 0);
	strew_host_free(NULL);
}

/* thing is a pointer to its address, and NULL is a thing that cannot be asked. */
static int32_t where_is(void *thing, void **ret_address)
{
	if (!thing) {
		return -1;
	}
	*ret_address = *(void **)thing;
	return 0;
}

static void test_first_moved(void **arg)
{
	char memory[3];
	void *lies[] = {&memory[0], &memory[1], &memory[2]};
	void *before[] = {&memory[0], &memory[1], &memory[2]};
	void *things[] = {&lies[0], &lies[1], &lies[2]};

	(void)arg;
	assert_int_equal(strew_first_moved(where_is, things, before, 0), 0);
	assert_int_equal(strew_first_moved(where_is, things, before, 3), 3);
	lies[2] = &memory[0];
	assert_int_equal(strew_first_moved(where_is, things, before, 3), 2);
	assert_int_equal(strew_first_moved(where_is, things, before, 2), 2);
	things[0] = NULL;
	assert_int_equal(strew_first_moved(where_is, things, before, 3), 0);
}

static void *other_thread(void *data)
{
	*(size_t *)data = strlen(strew_error());
	return NULL;
}

static void test_error_of_thread(void **arg)
{
	pthread_t thread;
	size_t length = 1;

	(void)arg;
	assert_int_equal(strew_host_alloc(0, NULL), -EINVAL);
	assert_int_equal(pthread_create(&thread, NULL, other_thread, &length), 0);
	pthread_join(thread, NULL);
	assert_int_equal(length, 0);
	assert_true(strlen(strew_error()) > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nobody),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_bad_welcome),
		cmocka_unit_test(test_namespaces),
		cmocka_unit_test(test_declare),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_first_moved),
		cmocka_unit_test(test_error_of_thread),
	};

	return TEST_RUN(tests);
}
