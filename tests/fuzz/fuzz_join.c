/* A broker that joins a lead that says anything, and processes of its own node. */
#include "base/util.h"
#include "fuzz/play.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static play_op *const ops[] = {op_turn, op_time, op_mover, op_close, op_raw, op_cut,
		op_mode, op_say_client, op_client, op_register, op_declare, op_publish, op_word,
		op_say_lead, op_manifest, op_epoch, op_bucket, op_refuse};

	play_input(PLAY_JOINS, data, size, ops, ARRAY_LEN(ops));
	return 0;
}
