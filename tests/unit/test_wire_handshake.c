/* Who may join the lead. */
#include "support/test_main.h"
#include "wire/handshake.h"
#include "wire/nccl.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct msg_join broker(uint64_t id, const char *backend, uint8_t gpu, uint64_t host)
{
	struct msg_join join = {.protocol = PROTOCOL_VERSION,
		.broker_id = id,
		.host_id = host,
		.nccl = strcmp(backend, "cuda") == 0 ? 22809 : 0,
		.slot_bytes = DEFAULT_SLOT_BYTES};

	memset(join.uuid, gpu, sizeof(join.uuid));
	snprintf(join.backend, sizeof(join.backend), "%s", backend);
	snprintf(join.name, sizeof(join.name), "node%llu", (unsigned long long)id);
	return join;
}

/* The lead has GPU 1 of host 100, a member GPU 2 of it. */
static const struct {
	const char *what;
	uint64_t id;
	const char *backend;
	uint8_t gpu;
	uint64_t host;
	uint32_t protocol, nccl; /* 0: the lead's */
	uint64_t slot_bytes;	 /* 0: the default */
	int code;
	const char *text;
} joins[] = {
	{"another GPU", 3, "cuda", 3, 100, 0, 0, 0, 0, NULL},
	{"the lead's GPU number on another host", 3, "cuda", 1, 101, 0, 0, 0, 0, NULL},
	{"the lead's GPU", 3, "cuda", 1, 100, 0, 0, 0, -EEXIST,
		"brokers node3 and node1 are on one GPU"},
	{"a member's GPU", 3, "cuda", 2, 100, 0, 0, 0, -EEXIST, "set NCCL_HOSTID to differing"},
	{"no GPU at all", 3, "cuda", 0, 100, 0, 0, 0, 0, NULL},
	{"the lead itself", 1, "cuda", 3, 100, 0, 0, 0, -EEXIST, "node1 has joined already"},
	{"a member again", 2, "cuda", 2, 100, 0, 0, 0, -EEXIST, "node2 has joined already"},
	{"an older protocol", 3, "cuda", 3, 100, 77, 0, 0, -EPROTO,
		"broker node3 speaks protocol 77, the lead 1"},
	{"another protocol comes before all else", 1, "host", 1, 100, 77, 1, 0, -EPROTO, NULL},
	{"another backend", 3, "host", 0, 100, 0, 0, 0, -EINVAL,
		"broker node3 has the host backend, the lead the cuda one"},
	{"an older NCCL", 3, "cuda", 3, 100, 0, 22703, 0, -EINVAL,
		"broker node3 has NCCL 2.27.3, the lead has 2.28.9: set STREW_NCCL to one library "
		"on both"},
	{"a newer NCCL", 3, "cuda", 3, 100, 0, 23001, 0, -EINVAL, "NCCL 2.30.1"},
	{"a slot too small", 3, "cuda", 3, 100, 0, 0, 4096, -EINVAL, "slots of 4096 bytes"},
	{"a slot too large", 3, "cuda", 3, 100, 0, 0, 1ull << 40, -EINVAL, "slots of"},
	{"the smallest slot", 3, "cuda", 3, 100, 0, 0, LIMIT_SLOT_BYTES_MIN, 0, NULL},
};

static void test_table(void **state)
{
	const struct msg_join members[] = {broker(1, "cuda", 1, 100), broker(2, "cuda", 2, 100)};

	(void)state;
	for (size_t i = 0; i < sizeof(joins) / sizeof(joins[0]); i++) {
		struct msg_join join =
			broker(joins[i].id, joins[i].backend, joins[i].gpu, joins[i].host);
		struct error err = {0};
		int rc;

		join.protocol = joins[i].protocol ? joins[i].protocol : join.protocol;
		join.nccl = joins[i].nccl ? joins[i].nccl : join.nccl;
		join.slot_bytes = joins[i].slot_bytes ? joins[i].slot_bytes : join.slot_bytes;
		rc = admit_check(&join, members, 2, &err);
		if (rc != joins[i].code || (joins[i].text && !strstr(err.text, joins[i].text))) {
			fail_msg("%s: %d \"%s\"", joins[i].what, rc, err.text);
		}
		assert_int_equal(err.code, rc);
	}
}

static void test_host_backend(void **state)
{
	const struct msg_join lead = broker(1, "host", 0, 100);
	struct msg_join join = broker(2, "host", 0, 100);

	(void)state;
	assert_int_equal(admit_check(&join, &lead, 1, NULL), 0);
	join = broker(2, "cuda", 1, 100);
	assert_int_equal(admit_check(&join, &lead, 1, NULL), -EINVAL);
}

static void test_limit(void **state)
{
	struct msg_join members[LIMIT_BROKERS];
	struct msg_join join = broker(1000, "host", 0, 100);
	struct error err = {0};

	(void)state;
	for (unsigned i = 0; i < LIMIT_BROKERS; i++) {
		members[i] = broker(i + 1, "host", 0, 100);
	}
	assert_int_equal(admit_check(&join, members, LIMIT_BROKERS - 1, &err), 0);
	assert_int_equal(admit_check(&join, members, LIMIT_BROKERS, &err), -E2BIG);
	assert_non_null(strstr(err.text, "64"));
}

/* The longest names leave room for the advice. */
static void test_long_names(void **state)
{
	struct msg_join lead = broker(1, "cuda", 1, 100);
	struct msg_join join = broker(2, "cuda", 1, 100);
	struct error err = {0};

	(void)state;
	memset(lead.name, 'l', sizeof(lead.name) - 1);
	memset(join.name, 'j', sizeof(join.name) - 1);
	assert_int_equal(admit_check(&join, &lead, 1, &err), -EEXIST);
	assert_non_null(strstr(err.text, "if they stand for two nodes"));
	lead.nccl = 22703;
	assert_int_equal(admit_check(&join, &lead, 1, &err), -EINVAL);
	assert_non_null(strstr(err.text, "STREW_NCCL to one library on both"));
}

static void test_versions(void **state)
{
	char text[24];

	(void)state;
	assert_string_equal(nccl_version_format(text, sizeof(text), 22809), "2.28.9");
	assert_string_equal(nccl_version_format(text, sizeof(text), 21801), "2.18.1");
	assert_string_equal(nccl_version_format(text, sizeof(text), 0), "none");
}

static void test_host_id(void **state)
{
	uint64_t boot;

	(void)state;
	unsetenv("NCCL_HOSTID");
	boot = host_id_compute();
	assert_int_equal(boot, host_id_compute());
	setenv("NCCL_HOSTID", "", 1);
	assert_int_equal(boot, host_id_compute());
	/* A published value of FNV-1a 64. */
	setenv("NCCL_HOSTID", "foobar", 1);
	assert_true(host_id_compute() == 0x85944171f73967e8u);
	setenv("NCCL_HOSTID", "node-b", 1);
	assert_true(host_id_compute() != 0x85944171f73967e8u);
	unsetenv("NCCL_HOSTID");
	assert_true(boot != 0xcbf29ce484222325u); /* not the hash of nothing */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_host_backend),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_long_names),
		cmocka_unit_test(test_versions),
		cmocka_unit_test(test_host_id),
	};

	return TEST_RUN(tests);
}
