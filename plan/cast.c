#include "plan/cast.h"

static bool is_float(enum strew_dtype dtype)
{
	return dtype == STREW_F32 || dtype == STREW_F16 || dtype == STREW_BF16;
}

bool cast_known(enum strew_dtype from, enum strew_dtype to)
{
	return is_float(from) && is_float(to);
}

void copy_set_cast(struct copy *copy, enum strew_dtype from, enum strew_dtype to)
{
	copy->from = copy->to = 0;
	if (from != to) {
		copy->from = (uint16_t)from;
		copy->to = (uint16_t)to;
	}
}

uint64_t copy_source_run(const struct copy *copy)
{
	if (!copy->from) {
		return copy->run_bytes;
	}
	return copy->run_bytes / strew_dtype_size(copy->to) * strew_dtype_size(copy->from);
}
