/*
 * The trainer's face of libstrew. A process that has new weights declares its
 * tensors (whole, or the boxes that it holds) to this node's broker and
 * publishes versions of them. Several ranks may share a model, on one node or
 * more; an update starts when all have published the same version.
 *
 * A trainer handle is used by one thread at a time; after fork() it is inert.
 */
#ifndef STREW_TRAINER_H
#define STREW_TRAINER_H

#include <strew/types.h>

#ifdef __cplusplus
extern "C" {
#endif

struct strew_trainer;

struct strew_trainer_options {
	const char *socket; /* NULL: $STREW_SOCKET, else the default path; none is "" */
	const char *model;  /* required */
	uint32_t rank;	    /* of this process among the model's trainer ranks */
	uint32_t ranks;	    /* 0: 1 */
	int timeout_ms;	    /* deadline of each call that waits for the broker; 0: 30,000 */
};

/*
 * A box of a tensor in this process's memory. `shape` is the tensor's global
 * shape; the box is [start, start + extent) in it (extent all 0: up to the
 * end). Element i of the box lies at data + sum(i_k * stride[k]) elements.
 */
struct strew_tensor {
	const char *name;
	enum strew_dtype dtype;
	int ndim;
	uint64_t shape[STREW_MAX_DIMS];
	uint64_t start[STREW_MAX_DIMS];
	uint64_t extent[STREW_MAX_DIMS];
	uint64_t stride[STREW_MAX_DIMS]; /* elements; all 0: row-major and dense */
	const void *data; /* as of a parameter; what cannot be mapped is copied by publish */
};

/*
 * Parameters that no tensor covers are not an error, and keep their bytes. A group that is DIRTY,
 * or has missed a version, in tensors that are not brought sits out, until a version of all that it
 * takes.
 */
#define STREW_PUBLISH_PARTIAL 1u
/*
 * Commit every group or none: every group of every broker that is there. A broker that was lost
 * aborts it until it is back, for 10 minutes at most; one that has left in order does not, nor one
 * that was lost before the lead itself was started.
 */
#define STREW_PUBLISH_SCOPE_ALL 2u
/*
 * Compare a hash of what goes over the wire at both ends: a difference aborts the update. It is
 * always done where a group with staged apply is served by wire; where all apply directly, what
 * was written is then DIRTY.
 */
#define STREW_PUBLISH_HASH 4u

/* How one group fared. Strings live as long as the report. */
struct strew_group_report {
	uint32_t node; /* 0 is the lead's */
	uint32_t replica;
	uint32_t part;
	enum strew_outcome outcome;
	enum strew_group_state state;
	const char *text;
};

struct strew_report {
	uint64_t version;
	/* COMMITTED: all groups; SAT_OUT: some; ABORTED: none, and the version may be published
	 * again; LOST: none has it in the end, but it was decided, so the version is spent. */
	enum strew_outcome outcome;
	const char *text; /* why, when not COMMITTED */
	uint64_t tensors;
	uint64_t unwanted;   /* tensors that no group of this update takes */
	uint64_t bytes;	     /* of the tensors, counted once */
	uint64_t wire_bytes; /* sent to other brokers, counted once */
	double wait_s;	     /* publish to every rank's stream done */
	double accept_s;     /* then to the last accept (gates of direct groups) */
	double move_s;	     /* then to the last prepared */
	double commit_s;     /* then to the last applied */
	double total_s;	     /* publish to the last applied */
	/* Of move_s, by the slowest broker: when each stage was seen done, counted from the move's
	 * start. The stages overlap; 0 where there was none. */
	double gather_s;  /* trainer memory into slots */
	double local_s;	  /* trainer memory straight to the workers of its node */
	double wire_s;	  /* slots to the other brokers */
	double scatter_s; /* slots to the workers */
	size_t ngroups;
	struct strew_group_report *groups;
};

/* Connects to the node's broker as rank `rank` of `ranks`. Errors as strew_agent_open(). */
STREW_API int strew_trainer_open(
	const struct strew_trainer_options *options, struct strew_trainer **ret_trainer);

/*
 * Declares a box. The memory stays the caller's; it must keep its address, and
 * outlive the trainer. -ENOTSUP if it cannot be shared.
 */
STREW_API int strew_trainer_declare(
	struct strew_trainer *trainer, const struct strew_tensor *tensor);

/*
 * Ends declaring: exports the memory, sends the manifest and waits until all
 * ranks have done so and the broker has mapped everything.
 */
STREW_API int strew_trainer_seal(struct strew_trainer *trainer);

/*
 * After a call has failed with -ECONNRESET: declares the same again to the broker that serves the
 * socket now. Waits for the end of the old broker's process too, and until all ranks have done so,
 * at most timeout_ms in all. An update that was under way is forgotten (its report will not come),
 * and the memory is not lent any more. On failure (errors as strew_agent_reconnect()) call it
 * again.
 */
STREW_API int strew_trainer_reconnect(struct strew_trainer *trainer, int timeout_ms);

/*
 * Publishes `version` of everything declared, as it is after what `stream` (a
 * CUstream; ignored where all memory is host memory that CUDA has neither
 * pinned nor manages) has queued by now. Returns at once; the memory is
 * lent until strew_trainer_wait_released() returns 0. timeout_ms is the update's
 * deadline (0: 60,000). -EBUSY: an earlier update has not been reported yet.
 * A refusal by the broker (a version that is not above the committed one, another
 * rank's version) arrives in the wait calls.
 */
STREW_API int strew_trainer_publish(struct strew_trainer *trainer, uint64_t version, void *stream,
	unsigned flags, int timeout_ms);

/*
 * Names some of the declared tensors, once, so that they can be published by themselves: the names
 * of those that belong to the subset and that this rank has declared (a rank may have none). All
 * ranks name their subsets in the same order, and the call waits until all have named this one.
 * *ret_subset numbers them from 1 on; a broker that comes after this one is told of them by
 * strew_trainer_reconnect(). -ENOENT: a name that was not declared here. -EINVAL names a tensor
 * that another rank has in it and this one holds a part of as well. -ETIMEDOUT: the
 * other ranks may still come; call it again with the same names.
 * -E2BIG: there are 64 already.
 */
STREW_API int strew_trainer_subset(struct strew_trainer *trainer, const char *const *names,
	size_t nnames, uint32_t *ret_subset);

/*
 * As strew_trainer_publish(), of that subset alone; the memory of other tensors is not read. All
 * other tensors are as in `base`, which must be the version that was committed last (0: what
 * the engines have loaded, before the first), else it is refused with -ESTALE. Parameters that the
 * subset does not cover keep their bytes; groups that are not CURRENT at `base` sit out, and
 * only a whole version heals one that is DIRTY.
 */
STREW_API int strew_trainer_publish_subset(struct strew_trainer *trainer, uint32_t subset,
	uint64_t base, uint64_t version, void *stream, unsigned flags, int timeout_ms);

/*
 * Publishing in parts: one update of everything declared whose tensors are made one after another,
 * when there is no memory for all of them at once. Each part is a subset (strew_trainer_subset());
 * together they are all tensors, each once. Tensors of different parts may be declared in the same
 * memory, since a put reads its own subset alone. All ranks put the same subsets in the same order,
 * also those of which they hold nothing. For each part: make its tensors, strew_trainer_put(),
 * strew_trainer_wait_released(). Then strew_trainer_close_parts() and
 * strew_trainer_wait_report(). Groups with staged apply keep their version until the commit,
 * whatever happens; the memory of direct ones changes with the first part, their gates are held
 * from there to the end, and an update that ends in between leaves them DIRTY.
 *
 * Opening says nothing to the broker yet. timeout_ms is the whole update's deadline, from the first
 * put on (0: 60,000). Errors as strew_trainer_publish().
 */
STREW_API int strew_trainer_open_parts(
	struct strew_trainer *trainer, uint64_t version, unsigned flags, int timeout_ms);

/*
 * Publishes that part as it is after what `stream` has queued by now. Returns at once; the memory
 * is lent until strew_trainer_wait_released(), which also says why a part was refused (-EINVAL:
 * another subset than the other ranks', or a tensor that was put already); the update goes on
 * then, with another put; or -ECANCELED, as below, if it ended meanwhile. -EBUSY: the part before
 * is still lent, or its answer is awaited. -EINVAL: no update is open. -ECANCELED: the update has
 * ended; strew_trainer_wait_report() says how.
 */
STREW_API int strew_trainer_put(struct strew_trainer *trainer, uint32_t subset, void *stream);

/*
 * All is there: waits for the broker's word that it is, at most the trainer's timeout, and not for
 * the update's end. -EINVAL names a tensor that was in no part, and the update is still open.
 * -ENOENT: nothing was put, and the update is forgotten. Others as strew_trainer_put().
 */
STREW_API int strew_trainer_close_parts(struct strew_trainer *trainer);

/*
 * Gives the open update up, for all ranks: a tensor could not be made, say. `why` (NULL: nothing)
 * comes behind this rank's number in everybody's report. Waits for the broker's word that it ends,
 * at most the trainer's timeout; then strew_trainer_wait_released() and
 * strew_trainer_wait_report() as ever, whose outcome is ABORTED. -ENOENT: nothing was put here, and
 * the update is forgotten; other ranks that have put are told. -ECANCELED: it has ended already, or
 * all ranks have put everything and it cannot be given up any more; the report says how.
 * -EINVAL: no update is open.
 */
STREW_API int strew_trainer_cancel_parts(struct strew_trainer *trainer, const char *why);

/*
 * Waits until the update no longer reads this process's memory. -ETIMEDOUT does
 * not release: the memory is still lent. After -ECONNRESET it is released once
 * the broker has let go of it or its process has ended, which this call waits for too.
 */
STREW_API int strew_trainer_wait_released(struct strew_trainer *trainer, int timeout_ms);

/*
 * Waits for the report of the update. 0 fills *ret_report, also when the update
 * did not commit everywhere: see its outcome. Free with strew_report_finish().
 */
STREW_API int strew_trainer_wait_report(
	struct strew_trainer *trainer, int timeout_ms, struct strew_report *ret_report);
STREW_API void strew_report_finish(struct strew_report *report);

/* A descriptor that polls readable when the broker has said something. */
STREW_API int strew_trainer_fd(struct strew_trainer *trainer);

/* Disconnects and frees, after waiting (at most the timeout) for lent memory. NULL is fine. */
STREW_API void strew_trainer_close(struct strew_trainer *trainer);

#ifdef __cplusplus
}
#endif

#endif
