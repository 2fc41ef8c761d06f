/*
 * Every bound of strew, in one place. A peer that exceeds one gets a sentence
 * that names it; nothing grows without one of these. Units last.
 */
#ifndef BASE_LIMITS_H
#define BASE_LIMITS_H

#define LIMIT_FRAME_BYTES (256u * 1024u) /* header included */
#define LIMIT_FIRST_FRAME_BYTES 4096u	 /* the same between brokers, until one has joined */
#define LIMIT_FRAME_FDS 64u
#define LIMIT_MSGPACK_DEPTH 6u
#define LIMIT_MSGPACK_VALUES 65536u /* values in one frame */
#define LIMIT_NAME_BYTES 512u	    /* tensor and parameter names */
#define LIMIT_MODEL_BYTES 128u
#define LIMIT_TEXT_BYTES 240u		      /* a sentence, its NUL included */
#define LIMIT_OUTBOX_BYTES (8u << 20)	      /* queued for a peer that does not read */
#define LIMIT_OUTBOX_FDS 128u		      /* the same of descriptors */
#define LIMIT_BROKER_OUTBOX_BYTES (80u << 20) /* the same for another broker: a manifest fits */
#define LIMIT_OUTBOX_SOURCES 32u	      /* manifests queued for another broker: all twice */
#define LIMIT_CONNECTIONS 1024u		      /* of one broker, all kinds */
#define LIMIT_LOOKERS 16u		      /* connections beyond those, which may only look */
#define LIMIT_SESSIONS 256u		      /* registered workers and trainers */
#define LIMIT_MEMBERS 64u		      /* workers of a group on a node */
#define LIMIT_GROUPS 64u		      /* groups on a node */
#define LIMIT_MODELS 16u
#define LIMIT_RANKS 256u  /* trainer ranks of a model */
#define LIMIT_SUBSETS 64u /* of a model's tensors that can be published */
/* Communicators that a broker makes before it starts itself anew: NCCL keeps memory of each. */
#define LIMIT_EPOCHS 100u
#define LIMIT_BROKERS 64u	      /* brokers of an epoch */
#define LIMIT_ALLOCATIONS 16384u      /* of one session */
#define LIMIT_CHUNKS 16384u	      /* physical chunks (fds) of one session */
#define LIMIT_TENSORS 262144u	      /* of one layout or manifest */
#define LIMIT_PARAMETERS 131072u      /* of one layout */
#define LIMIT_PIECES 1048576u	      /* of one layout */
#define LIMIT_BOXES 1048576u	      /* of one manifest */
#define LIMIT_COVER_STEPS (1u << 26)  /* to tell who holds what of a manifest */
#define LIMIT_SHARED_STEPS (1u << 25) /* until no two pieces of a layout write one element */
#define LIMIT_PARTS_BYTES (64u << 20) /* a layout or manifest on the wire, all parts */
#define LIMIT_COPIES (16u << 20)      /* of one compiled plan */
#define LIMIT_MATCH_STEPS (1u << 29)  /* to match boxes and pieces, for one plan */
#define LIMIT_REPORT_GROUPS 512u      /* groups in one message */
#define LIMIT_HASHES 4096u	      /* of buckets, in one message */
#define LIMIT_SLOT_TYPES 2048u	      /* runs of tensors with one dtype in slots, in one message */
#define LIMIT_EVENTS 64u	      /* updates that a broker remembers */
#define LIMIT_READ_BYTES (16u << 20)  /* of a worker's memory, in one answer to read */
#define LIMIT_EXPLAINED 64u	      /* rows of an answer to explain */
#define LIMIT_SHARDS 4096u	      /* files of one checkpoint */
#define LIMIT_RINGS 64u		      /* between GPUs without peer access: 8 of them have 56 ways */

#define LIMIT_ALIVE_MS 3000	/* between two words of a broker to another */
#define LIMIT_SILENT_MS 15000	/* without one: it is given up */
#define LIMIT_MISSED_MS 600000	/* so long scope=all waits for a broker that was lost */
#define LIMIT_AGAIN_MS 15000	/* it is about to come back so long, if it starts itself anew */
#define LIMIT_HELLO_MS 5000	/* connect to hello */
#define LIMIT_REGISTER_MS 60000 /* register to seal */
#define LIMIT_CALL_MS 30000	/* default of the agents' calls */
#define LIMIT_UPDATE_MS 60000	/* default deadline of an update */
#define LIMIT_PULL_MS 5000	/* least that workers have to copy out of their twins */
#define LIMIT_SETTLE_MS 60000	/* for a commit that was learnt after its lead was lost */
#define LIMIT_UPDATE_MAX_MS 3600000
#define LIMIT_CATCH_MS 30000	/* for the gate of a group that catches up, once a resume waits */
#define LIMIT_YIELD_MS 2000	/* for its copies, once an update waits that would leave it DIRTY */
#define LIMIT_EPOCH_MS 30000	/* to join, and to warm a communicator */
#define LIMIT_ABORT_MS 5000	/* for an abort of a communicator */
#define LIMIT_JOB_MS 600000	/* for a job of the mover that has no deadline of its own */
#define LIMIT_PLAN_MS 60000	/* for plans, at least, however near the update's deadline is */
#define LIMIT_HUNG_MS 15000	/* for one that has, behind it; then the broker ends */
#define LIMIT_STOP_MS 10000	/* for the broker's end in order; strew run kills it after 15000 */
#define LIMIT_RETRY_MIN_MS 100	/* joining: first delay */
#define LIMIT_RETRY_MAX_MS 5000 /* joining: largest delay */
#define LIMIT_SUCCEED_MS 25000	/* joining: so long a broker that has died may be in the way */
#define LIMIT_LOOKUP_MS 10000	/* joining in vain: then the lead's name is looked up again */
#define LIMIT_BLAME_MIN_MS 1000 /* who spoilt a communicator is kept out at least … */
#define LIMIT_BLAME_MAX_MS 600000 /* … and, as it is for longer each time, at most */

/* Of all sessions of a broker together. */
#define LIMIT_ALL_PARTS_BYTES (1u << 30) /* layouts that are not sealed yet */
#define LIMIT_ALL_CHUNKS 131072u

#define LIMIT_READ_MS 5000	  /* for the copy of what an observer reads */
#define LIMIT_ACCEPT_PAUSE_MS 100 /* without accepting, when descriptors are short */
#define LIMIT_PORT_FREE_MS 10000  /* for the lead's port, which a dead broker may still have */
#define LIMIT_GATHER_MS 50	  /* for more changes of membership, before an epoch is made */
#define LIMIT_DRAIN_MS 1000	  /* behind an abort, for the kernels that it has told to end */

#define LIMIT_SLOT_BYTES_MIN (64u << 10)
#define LIMIT_SLOT_BYTES_MAX (4ull << 30)
#define LIMIT_SLOTS_MIN 2u
#define LIMIT_SLOTS_MAX 16u
#define DEFAULT_SLOT_BYTES (256ull << 20)
#define DEFAULT_SLOTS 3u

#define SLOT_ALIGN 256u /* every box in a slot starts on this */

#endif
