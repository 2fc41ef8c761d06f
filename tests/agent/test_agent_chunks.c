/*
 * An allocation of many chunks, as PyTorch's expandable segments are: it takes several frames.
 * The linker puts __wrap_export_handle() in the place of export_handle() (CMakeLists.txt).
 */
#include "base/util.h"
#include "fake_broker.h"
#include "gpu/export.h"
#include "support/test_main.h"
#include <errno.h>
#include <strew/strew.h>
#include <string.h>
#include <unistd.h>

#define CHUNKS 150
#define CHUNK_BYTES 4096

int __wrap_export_handle(
	const struct export_set *set, uint32_t index, struct handle *ret_handle, struct error *err);

static uint32_t nchunks;

int __wrap_export_handle(
	const struct export_set *set, uint32_t index, struct handle *ret_handle, struct error *err)
{
	struct handle handle = {
		.kind = nchunks ? HANDLE_CUDA_VMM : HANDLE_CUDA_IPC, .size_bytes = 4096};

	(void)set;
	(void)err;
	EXPECT(index == 0);
	memset(handle.uuid, 0xab, sizeof(handle.uuid));
	memset(handle.ipc, 0xcd, sizeof(handle.ipc));
	handle.nchunks = nchunks;
	handle.fds = malloc((nchunks + 1) * sizeof(*handle.fds));
	handle.chunk_bytes = malloc((nchunks + 1) * sizeof(*handle.chunk_bytes));
	EXPECT(handle.fds && handle.chunk_bytes);
	for (uint32_t i = 0; i < nchunks; i++) {
		handle.fds[i] = dup(STDERR_FILENO);
		handle.chunk_bytes[i] = CHUNK_BYTES + i;
		EXPECT(handle.fds[i] >= 0);
	}
	*ret_handle = handle;
	return 0;
}

static void script(struct fake *fake)
{
	struct message message;
	uint32_t first = 0;

	fake_expect(fake, MSG_REGISTER, &message);
	EXPECT(message.u.reg.allocations == 1);
	do {
		const struct msg_allocation *said = &message.u.allocation;

		fake_expect(fake, MSG_ALLOCATION, &message);
		EXPECT(said->index == 0 && said->first_chunk == first && said->chunks == nchunks);
		EXPECT(message.nfds == MIN(nchunks - first, LIMIT_FRAME_FDS));
		EXPECT(said->nchunk_bytes == message.nfds);
		EXPECT(said->uuid[0] == 0xab && said->ipc[63] == 0xcd);
		for (uint32_t i = 0; i < message.nfds; i++) {
			EXPECT(said->chunk_bytes[i] == CHUNK_BYTES + first + i);
		}
		first += message.nfds;
		message_finish(&message);
	} while (first < nchunks);
	fake_drop(fake);
}

static void run(uint32_t n)
{
	struct fake fake = {.script = script};
	struct strew_agent_options options = {
		.socket = fake.path, .model = "m", .partial = 1, .timeout_ms = 500};
	struct strew_parameter parameter = {
		.name = "p", .dtype = STREW_U8, .ndim = 1, .shape = {16}};
	struct strew_agent *agent;
	uint32_t id;

	nchunks = n;
	fake_start(&fake);
	assert_int_equal(strew_host_alloc(4096, &parameter.data), 0);
	assert_int_equal(strew_agent_open(&options, &agent), 0);
	assert_int_equal(strew_agent_declare(agent, &parameter, &id), 0);
	assert_int_equal(strew_agent_register(agent), -ECONNRESET);
	strew_agent_close(agent);
	strew_host_free(parameter.data);
	fake_stop(&fake);
}

static void test_chunks(void **arg)
{
	(void)arg;
	run(CHUNKS);
	run(2 * LIMIT_FRAME_FDS);
	run(1);
	run(0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_chunks),
	};

	return TEST_RUN(tests);
}
