/* A broker without others, and processes at its Unix socket that say anything. */
#include "base/util.h"
#include "fuzz/play.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static play_op *const ops[] = {op_turn, op_time, op_mover, op_close, op_raw, op_cut,
		op_mode, op_say_client, op_client, op_register, op_declare, op_publish, op_word};

	play_input(PLAY_ALONE, data, size, ops, ARRAY_LEN(ops));
	return 0;
}
