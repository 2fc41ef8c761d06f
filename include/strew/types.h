/*
 * strew: types that the worker's face (agent.h) and the trainer's face
 * (trainer.h) share. Plain C, usable from C++. Every function of the library
 * returns 0 or a count on success and a negative errno value on failure; the
 * sentence that explains the last failure is strew_error().
 */
#ifndef STREW_TYPES_H
#define STREW_TYPES_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(STREW_BUILDING)
#define STREW_API __attribute__((visibility("default")))
#else
#define STREW_API
#endif

#define STREW_MAX_DIMS 6

/* Element types. Sizes in bytes: strew_dtype_size(). The numbers travel on the wire. */
enum strew_dtype {
	STREW_DTYPE_INVALID = 0,
	STREW_F32 = 1,
	STREW_F16 = 2,
	STREW_BF16 = 3,
	STREW_F8_E4M3 = 4,
	STREW_F8_E5M2 = 5,
	STREW_I8 = 6,
	STREW_U8 = 7,
	STREW_I16 = 8,
	STREW_U16 = 9,
	STREW_I32 = 10,
	STREW_U32 = 11,
	STREW_I64 = 12,
	STREW_U64 = 13,
	STREW_F64 = 14,
	STREW_BOOL = 15,
};

/* A group's answer to "may I write now?". */
enum strew_gate {
	STREW_GATE_LIVE = 1, /* always; the engine may read old and new values inside one step */
	STREW_GATE_HELD = 2, /* only between strew_agent_ready() and strew_agent_resume() */
};

/* How an update gets into a group. */
enum strew_apply {
	STREW_APPLY_DIRECT = 1, /* scattered into live memory as it arrives */
	STREW_APPLY_STAGED = 2, /* into shadow memory, then one short copy at the commit */
};

/* States of a group; docs/architecture.md has the table. The numbers travel on the wire. */
enum strew_group_state {
	STREW_GROUP_FORMING = 1,
	STREW_GROUP_CURRENT = 2,
	STREW_GROUP_PENDING = 3,
	STREW_GROUP_IN_DOUBT = 4,
	STREW_GROUP_DIRTY = 5,
	STREW_GROUP_STALE = 6,
	STREW_GROUP_LOST = 7,
};

/* What became of a group in an update. The numbers travel on the wire. */
enum strew_outcome {
	STREW_OUTCOME_NONE = 0,	     /* not decided */
	STREW_OUTCOME_COMMITTED = 1, /* every byte of the new version is in place */
	STREW_OUTCOME_SAT_OUT = 2,   /* untouched; the text says why; the group is STALE */
	STREW_OUTCOME_ABORTED = 3,   /* untouched; the update was given up before its commit */
	STREW_OUTCOME_DIRTY = 4,     /* written in part; only a whole update heals it */
	STREW_OUTCOME_LOST = 5,	     /* its workers are gone */
};

/* Whether a layout was compared with memory that the engine itself has filled. The numbers travel
 * on the wire. */
enum strew_proof {
	STREW_UNPROVED = 1,
	STREW_PROVED = 2,
};

/* Bytes of one element, or 0 for an unknown dtype. */
STREW_API size_t strew_dtype_size(enum strew_dtype dtype);

/* Lower-case name ("bf16"), or "invalid". */
STREW_API const char *strew_dtype_name(enum strew_dtype dtype);

/* Names of states and outcomes in the words of the documentation ("CURRENT", "committed"). */
STREW_API const char *strew_group_state_name(enum strew_group_state state);
STREW_API const char *strew_outcome_name(enum strew_outcome outcome);

/*
 * The sentence for the calling thread's last failed strew call, "" if there
 * was none. Valid until the thread's next strew call.
 */
STREW_API const char *strew_error(void);

/*
 * Host memory that can be shared with a broker: zeroed pages of a sealed
 * memfd. Use it where there is no GPU (and for checkpoints); any pointer into
 * it may be declared. *ret_ptr is page-aligned. Free with strew_host_free()
 * after the agent or trainer that declared it is closed. Thread-safe.
 */
STREW_API int strew_host_alloc(size_t len_bytes, void **ret_ptr);
STREW_API void strew_host_free(void *ptr);

/*
 * Of things that lie somewhere: the index of the first that where_is() puts
 * elsewhere than before[i], or of which it returns anything but 0; count if
 * there is none. For bindings that look at thousands of another library's
 * tensors before each update.
 */
STREW_API size_t strew_first_moved(int32_t (*where_is)(void *thing, void **ret_address),
	void *const *things, void *const *before, size_t count);

/* Library version, e.g. "0.1.0". */
STREW_API const char *strew_version(void);

#ifdef __cplusplus
}
#endif

#endif
