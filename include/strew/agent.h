/*
 * The worker's face of libstrew. An inference process (one tensor-parallel
 * rank) describes its parameters to this node's broker, which then writes new
 * weights straight into them. The library exports memory and answers the
 * broker; it never runs a collective and never copies on its own.
 *
 * An agent is used by one thread at a time. After fork() the child's copy is
 * inert: every call returns -ECHILD, and the parent's session is unharmed.
 */
#ifndef STREW_AGENT_H
#define STREW_AGENT_H

#include <strew/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct strew_agent;

/* Who this worker is. Zero-initialise, then fill in; strings are copied. */
struct strew_agent_options {
	const char *socket;	/* NULL: $STREW_SOCKET, else the default path; none is "" */
	const char *model;	/* required */
	uint32_t replica;	/* which copy of the model this group serves */
	uint32_t part;		/* which part of the replica (pipeline stage, node) */
	uint32_t member;	/* this worker's rank among the group's members on this node */
	uint32_t members;	/* members of the group on this node; 0: 1 */
	enum strew_gate gate;	/* 0: STREW_GATE_HELD */
	enum strew_apply apply; /* 0: STREW_APPLY_STAGED */
	int partial;		/* accept updates that leave parameters uncovered */
	int serve_thread;	/* answer the broker from a thread of the library's own */
	int timeout_ms;		/* deadline of each call that waits for the broker; 0: 30,000 */
	/*
	 * Asked before each update, when nothing is written yet: does the engine still use the
	 * memory that was registered? 0: yes. Else the update is refused for this worker's group,
	 * with the sentence that it puts into `ret_text` (zero-terminated). Called by the thread
	 * that hears the broker: one that is in a call of this library with this agent, or the
	 * library's own (serve_thread). It must not call the library with this agent, and updates
	 * wait for it. NULL: nobody is asked.
	 */
	int (*check)(void *data, char *ret_text, size_t text_bytes);
	void *check_data;
};

/*
 * A parameter: memory of this process that updates write to. `data` is a
 * device pointer or host memory. What cannot be mapped by the broker (ordinary host memory,
 * device memory without a handle) is copied to by this library at commit, out of memory of the
 * same length that it allocates: strew_host_alloc() avoids that. Element (i0, i1, …)
 * lies at data + sum(i_k * stride[k]) elements. ndim 0 is a single element.
 */
struct strew_parameter {
	/* For messages; unique within the agent. What begins with "loader:" is a tensor that feeds
	 * the engine's own loader: `strew status` counts no such parameter. */
	const char *name;
	void *data;
	enum strew_dtype dtype;
	int ndim;
	uint64_t shape[STREW_MAX_DIMS];
	uint64_t stride[STREW_MAX_DIMS]; /* in elements; all 0: row-major and dense */
};

/*
 * A piece: an arrow from a box of a tensor to a place in a parameter.
 *
 * `shape` is the tensor's global shape. `view` refines it: each dimension of
 * the tensor may be split into several, outermost first, whose product is the
 * dimension (view_ndim 0: the view is the shape itself). The box is
 * [start, start + extent) in each dimension of the view; the element at index
 * i of the box goes to element offset + sum(i_k * stride[k]) of the parameter,
 * counted in elements from its data pointer. All strides 0: the box is laid
 * out row-major and dense. Two indices of the box never share an element.
 *
 * A cast is between f32, f16 and bf16: to the nearest value, ties to even, too
 * large to infinity. A NaN keeps its sign and the upper bits of its payload, and
 * is quiet.
 *
 * Example, the rotary permutation of H heads of size d (docs/protocol.md):
 * shape [H*d, C], view [H, d/2, 2, C], stride [d*C, C, d/2*C, 1].
 */
struct strew_piece {
	const char *tensor;	/* the trainer's name */
	enum strew_dtype dtype; /* the tensor's; must equal the parameter's, unless `cast` is set */
	int ndim;
	uint64_t shape[STREW_MAX_DIMS];
	int view_ndim;
	uint64_t view[STREW_MAX_DIMS];
	uint64_t start[STREW_MAX_DIMS];	 /* in the view's dimensions */
	uint64_t extent[STREW_MAX_DIMS]; /* in the view's dimensions; all 0: up to the end */
	uint32_t parameter;		 /* as returned by strew_agent_declare() */
	uint64_t offset;		 /* elements */
	uint64_t stride[STREW_MAX_DIMS]; /* elements, by the view's dimensions */
	int cast;			 /* nonzero: convert to the parameter's dtype */
};

enum strew_event_type {
	STREW_EVENT_NONE = 0,
	STREW_EVENT_HOLD = 1, /* held gate: reach a step's end, call ready, then resume */
	STREW_EVENT_DONE = 2, /* an update, or catching up, ended; outcome and version say how */
	STREW_EVENT_LOST =
		3, /* the broker is gone: close or reconnect; state says what is in memory */
};

struct strew_event {
	enum strew_event_type type;
	uint64_t version;
	enum strew_outcome outcome;
	enum strew_group_state state; /* of the group, after the event */
	char text[240];		      /* why, when the outcome is not COMMITTED */
	uint32_t catching; /* 1: what has ended was no update: the last version, from a sibling */
};

/*
 * Connects to the node's broker. Blocks for at most the timeout.
 * -ENOENT or -ECONNREFUSED: nobody serves the socket; -EPROTO: not a broker of
 * this protocol version. On success *ret_agent must be closed by the caller.
 */
STREW_API int strew_agent_open(
	const struct strew_agent_options *options, struct strew_agent **ret_agent);

/*
 * Declares a parameter; its memory stays the caller's and must outlive the
 * agent or its strew_agent_withdraw(). Returns 0 and sets *ret_id; -ENOTSUP if
 * the allocation cannot be shared (name, pointer and reason in strew_error()).
 */
STREW_API int strew_agent_declare(
	struct strew_agent *agent, const struct strew_parameter *parameter, uint32_t *ret_id);

/* Adds a piece. Checked at once against the parameter; -EINVAL, -ERANGE, -ENOTSUP. */
STREW_API int strew_agent_piece(struct strew_agent *agent, const struct strew_piece *piece);

/*
 * What `strew status` is to say of the layout: how many of the engine's
 * parameters its own loader fills, how many are left out, and whether it was
 * proved. Before strew_agent_register(); without it, 0, 0 and "-". -EINVAL.
 */
STREW_API int strew_agent_note_layout(
	struct strew_agent *agent, uint32_t loader, uint32_t refused, enum strew_proof proof);

/*
 * Exports the memory and registers with the broker, which has then mapped it.
 * The memory is borrowed from now until withdraw or close. Once only: even where it
 * was refused, more parameters want another agent.
 * Blocks for at most the timeout.
 */
STREW_API int strew_agent_register(struct strew_agent *agent);

/*
 * After STREW_EVENT_LOST: registers the same parameters and pieces with the broker that serves
 * the socket now, which is told what the memory holds: a group whose workers hold one version is
 * CURRENT again, STALE while it is not known whether the update under way was committed elsewhere,
 * and one that was being written is DIRTY until a whole update. Waits for the end of
 * the old broker's process too, at most timeout_ms in all; on failure (-ENOENT, -ECONNREFUSED:
 * nobody serves the socket yet; -ECONNRESET: only a dead broker's socket was left there;
 * -ETIMEDOUT; -EEXIST: the broker has not noticed yet that the old connection is over) the memory
 * is as it was: call it again. Events that were not taken are dropped, and an engine that is paused
 * calls ready again. -EISCONN: the broker is not gone.
 */
STREW_API int strew_agent_reconnect(struct strew_agent *agent, int timeout_ms);

/* A descriptor that polls readable when strew_agent_dispatch() has work. The agent's own. */
STREW_API int strew_agent_fd(struct strew_agent *agent);

/*
 * Answers the broker without blocking and reports at most one event. Returns 1
 * and fills *ret_event, 0 if there was none, -ECONNRESET once the broker is gone.
 */
STREW_API int strew_agent_dispatch(struct strew_agent *agent, struct strew_event *ret_event);

/* The same, waiting for an event for at most timeout_ms (-ETIMEDOUT). */
STREW_API int strew_agent_wait(
	struct strew_agent *agent, int timeout_ms, struct strew_event *ret_event);

/*
 * Held gate: says that the engine does not use its parameters once `stream`
 * (a CUstream, NULL for the default stream; ignored where all memory is host
 * memory that CUDA has neither pinned nor manages) has finished what was queued before this call.
 * Does not wait. All members of a group must call it at the same step.
 */
STREW_API int strew_agent_ready(struct strew_agent *agent, void *stream);

/*
 * Held gate: asks for the memory back and waits until the broker grants it: at
 * once if no update is being written, else after its end. -ETIMEDOUT: not yet,
 * call again. -EUCLEAN: refused, the group is DIRTY; call again after the next
 * update. -ECONNRESET: the broker is gone (strew_agent_state() says what the memory holds).
 */
STREW_API int strew_agent_resume(struct strew_agent *agent, int timeout_ms);

/* The group's state and committed version as last heard. Either pointer may be NULL. */
STREW_API int strew_agent_state(
	struct strew_agent *agent, enum strew_group_state *ret_state, uint64_t *ret_version);

/*
 * The same from the broker's page: no lock, no system call, from any thread while the agent is
 * neither closed nor reconnected. Read before and after a step, two equal answers of CURRENT say
 * which version it ran on. -EAGAIN: the page says nothing yet, or its writer died in the middle.
 */
STREW_API int strew_agent_peek(
	const struct strew_agent *agent, enum strew_group_state *ret_state, uint64_t *ret_version);

/*
 * For an engine that was just started: waits until its group is CURRENT, which takes all its
 * members, and, if versions were committed without it, another replica on its node to take the
 * last one from, or the next whole update. With a held gate say ready first, or nothing gets in.
 * Events are kept. -ETIMEDOUT: not yet; -ECONNRESET.
 */
STREW_API int strew_agent_wait_current(struct strew_agent *agent, int timeout_ms);

/* Takes the memory back: on return nothing writes to it. Waits for at most the timeout. */
STREW_API int strew_agent_withdraw(struct strew_agent *agent);

/*
 * Withdraws if need be, disconnects and frees. NULL is fine. The agent is gone in any case; if this
 * is not 0 the withdraw failed (-ETIMEDOUT: the broker hangs or is stopped), and the memory is not
 * the caller's own: it may still be written, until the broker's process has ended or goes on and
 * notices that this connection is over. Keep it, or withdraw until that returns 0 before closing.
 */
STREW_API int strew_agent_close(struct strew_agent *agent);

#ifdef __cplusplus
}
#endif

#endif
