/* The trainer's face of the library, and a broker that says anything. */
#include "base/clock.h"
#include "base/util.h"
#include "fuzz/broker_side.h"
#include "fuzz/says.h"
#include <strew/strew.h>
#include <string.h>

#define CALL_MS 5000

static unsigned char *memory;
static struct strew_trainer *trainer;

static int open_trainer(uint8_t how)
{
	struct strew_trainer_options options = {.socket = "/nowhere/strew",
		.model = "m",
		.ranks = 1 + (how & 3),
		.timeout_ms = CALL_MS};

	if (!(how & 8)) {
		broker_side_offer();
	}
	return strew_trainer_open(&options, &trainer);
}

static int declare(
	const char *name, uint64_t offset, uint64_t rows, uint64_t start, uint64_t stride)
{
	struct strew_tensor tensor = {.name = name,
		.dtype = STREW_F32,
		.ndim = 2,
		.shape = {rows, 8},
		.start = {start, 0},
		.stride = {stride, stride ? 1 : 0},
		.data = memory + offset};

	return strew_trainer_declare(trainer, &tensor);
}

static int report(void)
{
	struct strew_report report = {0};
	int rc = strew_trainer_wait_report(trainer, CALL_MS, &report);

	if (rc == 0) {
		for (size_t i = 0; i < report.ngroups; i++) {
			CLAIM(report.groups[i].text && strlen(report.groups[i].text) < 1024);
		}
		strew_report_finish(&report);
	}
	return rc;
}

static int name_subset(const char *name)
{
	uint32_t subset;

	return strew_trainer_subset(trainer, &name, 1, &subset);
}

static int open_parts(struct input *input)
{
	uint64_t version = says_number(input);

	return strew_trainer_open_parts(trainer, version, input_below(input, 5), CALL_MS);
}

static int call(struct input *input)
{
	switch (input_byte(input) % 18) {
	case 0:
	case 1:
		return declare(input_byte(input) & 1 ? "t" : "u", input_byte(input) * 4u,
			says_number(input), says_number(input), says_number(input));
	case 2:
		return strew_trainer_seal(trainer);
	case 3:
	case 4:
	case 5:
		return strew_trainer_publish(
			trainer, says_number(input), NULL, input_below(input, 5), CALL_MS);
	case 6:
	case 7:
		return strew_trainer_wait_released(trainer, CALL_MS);
	case 8:
		return strew_trainer_fd(trainer);
	case 12:
		return name_subset(input_byte(input) & 1 ? "u" : "t");
	case 13:
		return open_parts(input);
	case 14:
	case 15:
		return strew_trainer_put(trainer, input_below(input, 4), NULL);
	case 16:
		return strew_trainer_close_parts(trainer);
	case 17:
		return strew_trainer_cancel_parts(trainer, input_byte(input) & 1 ? "why" : NULL);
	default:
		return report();
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
	trainer = NULL;
	broker_side_returned(open_trainer(how), start, CALL_MS);
	if (trainer && how & 16) {
		CLAIM(declare("t", 0, 16, 0, 0) == 0);
	}
	if (trainer && how & 32) {
		start = clock_ns();
		broker_side_returned(strew_trainer_seal(trainer), start, CALL_MS);
	}
	for (unsigned calls = 0; trainer && input.left && calls < 64; calls++) {
		start = clock_ns();
		broker_side_returned(call(&input), start, CALL_MS);
	}
	input.left = 0;
	start = clock_ns();
	strew_trainer_close(trainer);
	broker_side_returned(0, start, 3 * CALL_MS);
	broker_side_stop();
	return 0;
}
