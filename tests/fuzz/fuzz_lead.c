/* A lead, brokers that join it and say anything, and processes of its own node. */
#include "base/util.h"
#include "fuzz/play.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static play_op *const ops[] = {op_turn, op_time, op_mover, op_close, op_raw, op_cut,
		op_mode, op_say_client, op_client, op_register, op_declare, op_publish, op_word,
		op_member, op_say_member, op_share, op_bucket};

	play_input(PLAY_LEADS, data, size, ops, ARRAY_LEN(ops));
	return 0;
}
