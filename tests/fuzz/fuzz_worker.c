/* The worker's face of the library, and a broker that says anything. */
#include "base/clock.h"
#include "base/util.h"
#include "fuzz/broker_side.h"
#include "fuzz/says.h"
#include <strew/strew.h>
#include <string.h>

#define CALL_MS 5000

static unsigned char *memory;
static struct strew_agent *agent;

static int open_agent(uint8_t how)
{
	struct strew_agent_options options = {.socket = "/nowhere/strew",
		.model = "m",
		.members = 1 + (how >> 6),
		.gate = how & 1 ? STREW_GATE_LIVE : STREW_GATE_HELD,
		.apply = how & 2 ? STREW_APPLY_DIRECT : STREW_APPLY_STAGED,
		.partial = how & 4,
		.timeout_ms = CALL_MS};

	if (!(how & 8)) {
		broker_side_offer();
	}
	return strew_agent_open(&options, &agent);
}

static int declare(const char *name, uint64_t offset, uint64_t rows, uint64_t stride)
{
	struct strew_parameter parameter = {.name = name,
		.data = memory + offset,
		.dtype = STREW_BF16,
		.ndim = 2,
		.shape = {rows, 8},
		.stride = {stride, stride ? 1 : 0}};
	uint32_t id;

	return strew_agent_declare(agent, &parameter, &id);
}

static int piece(uint32_t parameter, uint64_t start, uint64_t extent, uint64_t offset)
{
	struct strew_piece said = {.tensor = "t",
		.dtype = STREW_BF16,
		.ndim = 2,
		.shape = {16, 8},
		.start = {start, 0},
		.extent = {extent, extent ? 8 : 0},
		.parameter = parameter,
		.offset = offset};

	return strew_agent_piece(agent, &said);
}

static int call(struct input *input)
{
	struct strew_event event;
	enum strew_group_state state;
	uint64_t version;

	switch (input_byte(input) % 16) {
	case 0:
		return declare("q", input_byte(input) * 2u, says_number(input), says_number(input));
	case 1:
		return piece(input_below(input, 3), says_number(input), says_number(input),
			says_number(input));
	case 2:
		return strew_agent_register(agent);
	case 3:
	case 4:
		return strew_agent_dispatch(agent, &event);
	case 5:
	case 6:
		return strew_agent_wait(agent, CALL_MS, &event);
	case 7:
	case 8:
		return strew_agent_ready(agent, NULL);
	case 9:
	case 10:
		return strew_agent_resume(agent, CALL_MS);
	case 11:
		return strew_agent_state(agent, &state, &version);
	case 12:
		(void)strew_agent_peek(agent, &state, &version);
		return 0;
	case 13:
		return strew_agent_wait_current(agent, CALL_MS);
	case 14:
		broker_side_offer();
		return strew_agent_reconnect(agent, CALL_MS);
	default:
		return strew_agent_withdraw(agent);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input input = {data, size};
	uint8_t how;
	uint64_t start;

	memory = broker_side_start(&input);
	how = input_byte(&input);
	start = clock_ns();
	agent = NULL;
	broker_side_returned(open_agent(how), start, CALL_MS);
	if (agent && how & 16) {
		CLAIM(declare("p", 0, 16, 0) == 0 && piece(0, 0, 0, 0) == 0);
	}
	if (agent && how & 32) {
		start = clock_ns();
		broker_side_returned(strew_agent_register(agent), start, CALL_MS);
	}
	for (unsigned calls = 0; agent && input.left && calls < 64; calls++) {
		start = clock_ns();
		broker_side_returned(call(&input), start, CALL_MS);
	}
	input.left = 0;
	start = clock_ns();
	strew_agent_close(agent);
	broker_side_returned(0, start, 2 * CALL_MS);
	broker_side_stop();
	return 0;
}
