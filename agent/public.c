/* The public functions that belong to neither face. */
#include "agent/public.h"
#include "base/util.h"
#include "gpu/export.h"
#include <errno.h>
#include <stdio.h>
#include <strew/strew.h>
#include <string.h>

static _Thread_local char last_sentence[LIMIT_TEXT_BYTES];

int public_return(int rc, const struct error *err)
{
	if (rc >= 0) {
		return rc;
	}
	if (err->code && err->text[0]) {
		string_copy(last_sentence, sizeof(last_sentence), err->text);
	} else {
		const char *text = strerrordesc_np(-rc);

		snprintf(last_sentence, sizeof(last_sentence), "%s", text ? text : "unknown error");
	}
	return rc;
}

int public_missing(struct error *err)
{
	return error_set(err, -EINVAL, "a required argument is NULL");
}

const char *strew_error(void)
{
	return last_sentence;
}

const char *strew_group_state_name(enum strew_group_state state)
{
	static const char *const names[] = {
		[STREW_GROUP_FORMING] = "FORMING",
		[STREW_GROUP_CURRENT] = "CURRENT",
		[STREW_GROUP_PENDING] = "PENDING",
		[STREW_GROUP_IN_DOUBT] = "IN_DOUBT",
		[STREW_GROUP_DIRTY] = "DIRTY",
		[STREW_GROUP_STALE] = "STALE",
		[STREW_GROUP_LOST] = "LOST",
	};

	return (size_t)state < ARRAY_LEN(names) && names[state] ? names[state] : "unknown";
}

const char *strew_outcome_name(enum strew_outcome outcome)
{
	static const char *const names[] = {
		[STREW_OUTCOME_NONE] = "none",
		[STREW_OUTCOME_COMMITTED] = "committed",
		[STREW_OUTCOME_SAT_OUT] = "sat out",
		[STREW_OUTCOME_ABORTED] = "aborted",
		[STREW_OUTCOME_DIRTY] = "dirty",
		[STREW_OUTCOME_LOST] = "lost",
	};

	return (size_t)outcome < ARRAY_LEN(names) ? names[outcome] : "unknown";
}

int strew_host_alloc(size_t len_bytes, void **ret_ptr)
{
	struct error err = {0};
	void *ptr;
	int rc;

	if (!ret_ptr || len_bytes == 0) {
		rc = error_set(&err, -EINVAL, "host memory of no bytes, or nowhere to say where");
		return public_return(rc, &err);
	}
	rc = host_memory_alloc(len_bytes, &ptr);
	if (rc) {
		error_set(
			&err, rc, "%zu bytes of host memory: %s", len_bytes, strerrordesc_np(-rc));
		return public_return(rc, &err);
	}
	*ret_ptr = ptr;
	return 0;
}

void strew_host_free(void *ptr)
{
	host_memory_free(ptr);
}

size_t strew_first_moved(int32_t (*where_is)(void *thing, void **ret_address), void *const *things,
	void *const *before, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		void *now;

		if (where_is(things[i], &now) || now != before[i]) {
			return i;
		}
	}
	return count;
}

const char *strew_version(void)
{
	return STREW_VERSION;
}
