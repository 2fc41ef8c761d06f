/*
 * Every message of strew, on both kinds of socket, as C structs. A frame is a
 * fixed header and a msgpack map; messages.c has one table of fields for each
 * type, from which encoding, decoding and their checks follow. docs/protocol.md
 * is the contract; the numbers never change.
 */
#ifndef IPC_MESSAGES_H
#define IPC_MESSAGES_H

#include "base/error.h"
#include "base/limits.h"
#include "strew/types.h"
#include <stddef.h>
#include <stdint.h>

#define PROTOCOL_VERSION 1u
#define FRAME_MAGIC 0x57525453u /* "STRW", little-endian */
#define FRAME_HEADER_BYTES                                                                         \
	24u /* u32 magic, u16 version, u16 type, u32 payload bytes, u32 fds, u64 serial */

enum message_type {
	/* process → broker and back, Unix socket */
	MSG_HELLO = 1,	   /* p→b; fd 0: the process's page */
	MSG_WELCOME = 2,   /* b→p; fd 0: the broker's page, fd 1: the broker's pidfd */
	MSG_ERROR = 3,	   /* either way; answers the request of the same serial (0: none) */
	MSG_OK = 4,	   /* b→p; answers */
	MSG_REGISTER = 10, /* worker→b: begins; then MSG_ALLOCATION …, MSG_PART …, MSG_SEAL */
	MSG_ALLOCATION = 11, /* p→b; fds: its chunks */
	MSG_PART = 12,	     /* p→b, b→b: a stretch of a blob (ipc/blob.h) */
	MSG_SEAL = 13,	     /* p→b: ends parts; answered by MSG_REGISTERED or MSG_DECLARED */
	MSG_REGISTERED = 14,
	MSG_WITHDRAW = 15, /* worker→b; answered by MSG_OK when nothing writes any more */
	MSG_CHECK = 20,	   /* b→worker: are your allocations as registered? */
	MSG_CHECKED = 21,
	MSG_HOLD = 22,	/* b→worker: an update wants the gate */
	MSG_READY = 23, /* worker→b: the gate is held once the page's ready word has this value */
	MSG_APPLY = 24, /* b→worker: copy from the twins to where their bytes belong */
	MSG_APPLIED_ROUTE = 25, /* worker→b: copied, or why not */
	MSG_DONE = 26,		/* b→worker: an update ended for this group */
	MSG_RESUME = 27,  /* worker→b; answered by MSG_OK or MSG_ERROR, perhaps much later */
	MSG_TRAINER = 40, /* trainer→b: begins; then MSG_ALLOCATION …, MSG_PART …, MSG_SEAL */
	MSG_DECLARED = 41, /* b→trainer: all ranks have declared */
	MSG_PUBLISH = 42,  /* trainer→b; answered by MSG_OK (taken) or MSG_ERROR (refused) */
	MSG_RELEASED = 43, /* b→trainer: the update reads your memory no more */
	MSG_REPORT = 44,   /* b→trainer: the update has ended */
	MSG_SUBSET = 45,   /* trainer→b: its part of a subset; answered by MSG_OK or MSG_ERROR */
	MSG_PUT = 46,	 /* trainer→b: the next part of what it publishes; answered as publish */
	MSG_CANCEL = 47, /* trainer→b: ends an update in parts; answered by MSG_OK or MSG_ERROR */
	MSG_STATUS = 60, /* p→b */
	MSG_STATUS_REPLY = 61,
	MSG_PROGRESS = 62, /* p→b */
	MSG_PROGRESS_REPLY = 63,
	MSG_EVENTS = 64, /* p→b: the first update that ended after that one */
	MSG_EVENT = 65,
	MSG_EXPLAIN = 66, /* p→b: the way of a tensor; answered by MSG_EXPLAINED or MSG_ERROR */
	MSG_EXPLAINED = 67,
	MSG_LAYOUT = 68, /* p→b: of the next worker or trainer rank here; answered by MSG_PART … and
			    MSG_LAID_OUT */
	MSG_LAID_OUT = 69, /* b→p */
	MSG_READ = 70,	   /* p→b: a stretch of a worker's live memory */
	MSG_READ_OUT = 71, /* b→p; fd 0: a memfd with the bytes */
	/* broker ↔ lead, TCP */
	MSG_JOIN = 80, /* m→lead; answered by MSG_JOINED or MSG_ERROR */
	MSG_JOINED = 81,
	MSG_EPOCH = 82,	      /* lead→m: make this communicator */
	MSG_EPOCH_READY = 83, /* m→lead: made (and warm), or why not */
	MSG_MANIFEST = 84,    /* lead→m: the parts before it are the manifest of this model */
	MSG_CHOSEN = 85,      /* lead→m: a subset of the manifest that was sent last */
	MSG_BEGIN = 86,
	MSG_ACCEPT = 87,
	MSG_GO = 88,
	MSG_PREPARED = 89,
	MSG_COMMIT = 90,
	MSG_ABORT = 91,
	MSG_APPLIED = 92,
	MSG_MOVED = 93,	     /* m→lead: as MSG_PREPARED, of a part that is not the end */
	MSG_UNDECLARED = 94, /* lead→m: the manifest of this model is none any more */
	MSG_BYE = 95,	     /* either way: leaves in order, or starts itself anew */
	MSG_ALIVE = 96,	     /* either way: nothing else was to be said for a while */
	MSG_NONCE = 97,	     /* either way, with a key: first of all, and by the lead in answer */
	MSG_SETTLED = 98,    /* lead→m: how an update ended that m recalls without its end */
	MSG_RECALL = 99,     /* m→lead: how far m got in the last update of a model */
	MSG_DATA = 100,	     /* m→lead on a connection of its own: carries buckets from now on */
	MSG_DECLARE = 110,   /* m→lead: the parts before it are what a trainer rank there holds;
			      * answered by MSG_DECLARED or MSG_ERROR */
	MSG_UNDECLARE = 111, /* m→lead: the rank is gone; answered by MSG_OK */
	MSG_RANK_PUBLISH = 112, /* m→lead; answered by MSG_OK and later MSG_REPORT, or MSG_ERROR */
	MSG_RANK_DONE = 113,	/* m→lead: the stream of what the rank publishes was seen done */
	MSG_RANK_SUBSET = 114,	/* m→lead; answered by MSG_OK or MSG_ERROR */
	MSG_RANK_PUT = 115,	/* m→lead; answered by MSG_OK or MSG_ERROR */
	MSG_RANK_CANCEL = 116,	/* m→lead; answered by MSG_OK or MSG_ERROR */
};

enum role { ROLE_WORKER = 1, ROLE_TRAINER = 2, ROLE_OBSERVER = 3 };
enum carrier_kind { CARRIER_NONE = 0, CARRIER_TCP = 1, CARRIER_NCCL = 2 };
/* A flag of publish, beside STREW_PUBLISH_*: `subset` is the first of the parts that come. */
#define PUBLISH_PARTS 0x10000u

/* How much of the last update that a worker has heard of is in its memory. */
enum memory_holds {
	HOLDS_ALL = 0,	   /* that update made it what it is (update 0: none did) */
	HOLDS_NOTHING = 1, /* not a byte */
	HOLDS_SOME = 2,	   /* the broker has begun to write it, and the end was not heard */
	HOLDS_UNKNOWN = 3,
};

/* How far a broker got in an update. */
enum recall_how {
	RECALL_PREPARED = 1,  /* it has said prepared and heard nothing since */
	RECALL_ABORTED = 2,   /* given up by the lead, or prepared was never said: no commit */
	RECALL_COMMITTED = 3, /* by the lead's word: these replicas and no others */
	RECALL_SEEN = 4,      /* by what workers hold: these replicas at least */
};

enum part_of { PART_LAYOUT = 1, PART_DECLARATION = 2, PART_MANIFEST = 3 };

#define UUID_BYTES 16
#define IPC_HANDLE_BYTES 64
#define UNIQUE_ID_BYTES 128
#define TOKEN_BYTES 16
#define NONCE_BYTES 32
#define ADDRESS_BYTES 64

struct msg_hello {
	uint32_t protocol;
	uint32_t role;
	uint64_t pid;
	uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
	char library[32];	/* strew_version() */
};

struct msg_welcome {
	uint32_t protocol;
	uint64_t broker_id; /* random, new at every start */
	uint64_t pid;
	uint64_t pid_namespace;
	char backend[8]; /* "cuda" or "host" */
	char library[32];
};

struct msg_error {
	uint32_t code; /* enum wire_code */
	char text[LIMIT_TEXT_BYTES];
};

struct msg_ok {
	uint64_t value;
};

struct msg_register {
	char model[LIMIT_MODEL_BYTES];
	uint32_t replica, part, member, members;
	uint32_t gate, apply, partial;
	uint32_t allocations; /* how many MSG_ALLOCATION indices follow */
	/* What an agent before this one has last heard of the same memory; 0: it is new. */
	uint32_t state;
	uint64_t version;
	uint64_t update; /* serial of the last update that it has heard of, 0: none */
	uint32_t holds;	 /* enum memory_holds: how much of that is in the memory */
	/* For status: parameters that the engine's own loader fills, those that are left out, and
	 * enum strew_proof. */
	uint32_t loader, refused, proof;
};

struct msg_allocation {
	uint32_t index;
	uint32_t kind; /* enum handle_kind of gpu/gpu.h */
	uint64_t base, size, buffer_id;
	uint8_t uuid[UUID_BYTES];
	uint8_t ipc[IPC_HANDLE_BYTES];
	uint32_t first_chunk;  /* of those in this frame */
	uint32_t chunks;       /* in all; an allocation of many chunks takes several frames */
	uint64_t *chunk_bytes; /* of those in this frame, one an fd */
	size_t nchunk_bytes;
};

struct msg_part {
	uint32_t of; /* enum part_of */
	uint32_t number;
	const uint8_t *bytes; /* decoded: borrowed from the frame until message_finish() */
	size_t nbytes;
};

struct msg_seal {
	uint32_t parts;
	uint64_t bytes;
	uint64_t hash; /* XXH3 64 of all bytes */
};

struct msg_registered {
	uint32_t state; /* of the group */
	uint64_t version;
	uint64_t bytes;	 /* that pieces of this worker cover */
	uint64_t shadow; /* bytes of shadow memory reserved */
};

struct msg_check {
	uint64_t update; /* the update's serial */
	uint64_t version;
};

struct msg_checked {
	uint64_t update;
	uint32_t code; /* WIRE_OK, or why not */
	char text[LIMIT_TEXT_BYTES];
};

struct msg_apply {
	uint64_t update;
	uint64_t version;
	const uint8_t *missing; /* a bit for each of the layout's tensors; borrowed, as in a part */
	size_t nmissing;	/* 0: none is missing */
};

struct msg_hold {
	uint64_t update;
	uint64_t version;
};

struct msg_ready {
	uint64_t word; /* value that the page's ready word will have */
};

struct msg_done {
	uint64_t update;
	uint64_t version; /* that the memory holds now */
	uint32_t outcome; /* enum strew_outcome */
	uint32_t state;	  /* enum strew_group_state */
	char text[LIMIT_TEXT_BYTES];
	uint32_t catching; /* 1: of catching up, else of an update */
};

struct msg_trainer {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank, ranks;
	uint32_t allocations;
};

struct msg_declared {
	uint64_t manifest_hash;
	uint64_t tensors, bytes;
	uint64_t version; /* last committed one of this model, 0: none */
};

struct msg_publish {
	uint64_t version;
	uint64_t word; /* value that the page's publish word will have when the stream is there */
	uint32_t flags;
	uint32_t timeout_ms;
	uint32_t subset; /* 0: everything */
	uint64_t base;	 /* of a subset: the version of the rest */
};

struct msg_put {
	uint64_t version;
	uint64_t word;	 /* as of publish */
	uint32_t subset; /* 0: all is there */
};

struct msg_cancel {
	uint64_t version;
	char text[LIMIT_TEXT_BYTES]; /* why */
};

struct msg_subset {
	uint32_t subset; /* its number, from 1 on */
	const uint8_t
		*tensors; /* a bit for each tensor of the declaration; borrowed, as in a part */
	size_t ntensors;  /* bytes */
};

struct msg_released {
	uint64_t version;
};

struct group_outcome {
	uint32_t node, replica, part;
	uint32_t outcome, state;
	char text[LIMIT_TEXT_BYTES];
};

/* When a broker saw each stage of a move done, from the move's start; 0 where it had none. */
struct stages {
	uint64_t gather_ns, local_ns, wire_ns, scatter_ns;
};

struct msg_report {
	uint64_t version;
	uint32_t outcome;
	char text[LIMIT_TEXT_BYTES];
	uint64_t tensors, unwanted, bytes, wire_bytes;
	uint64_t wait_ns, accept_ns, move_ns, commit_ns, total_ns;
	struct stages stages; /* of the slowest broker, each */
	struct group_outcome *groups;
	size_t ngroups;
};

struct status_group {
	char model[LIMIT_MODEL_BYTES];
	uint32_t replica, part, members, present;
	uint32_t gate, apply, state;
	uint64_t version, bytes, shadow;
	uint64_t raw, pull, loader; /* parameters by route, without what feeds a loader … */
	uint64_t refused;	    /* … and those that workers have left out */
	uint32_t proof;		    /* enum strew_proof: the least of its workers' */
};

struct status_trainer {
	char model[LIMIT_MODEL_BYTES];
	uint32_t ranks, present;
	uint64_t tensors, bytes, version;
	char stage[24];	  /* "idle", "moving", … */
	uint32_t subsets; /* that can be published */
	uint32_t subset;  /* that `version` was of, 0: everything … */
	uint64_t base;	  /* … else on this version */
};

struct status_broker {
	uint32_t rank;
	char name[ADDRESS_BYTES];
	char device[48];
};

/* Bytes from one GPU to another that it does not reach, by pinned host memory. */
struct status_bounce {
	char from[48], to[48];
	uint64_t bytes; /* of that memory */
};

struct msg_status_reply {
	uint64_t broker_id, pid, uptime_ms;
	char backend[8], device[48], library[32], carrier[8];
	uint32_t nccl; /* version number, 0: none */
	uint32_t lead; /* 1: this is the lead */
	uint64_t epoch;
	uint64_t slot_bytes, slots;
	uint64_t updates, aborted; /* since the start */
	uint64_t plans;		   /* made since the start; later updates of the same need none */
	struct status_group *groups;
	size_t ngroups;
	struct status_trainer *trainers;
	size_t ntrainers;
	struct status_broker *brokers;
	size_t nbrokers;
	struct status_bounce *bounces;
	size_t nbounces;
};

/* Of one model, as this broker sees its update. */
struct progress {
	char model[LIMIT_MODEL_BYTES];
	char stage[24];
	uint64_t version;		/* under way, or the last one; 0: none yet */
	uint64_t committed;		/* 0: none yet */
	uint64_t done, total;		/* bytes that this broker moves; 0 while it does not */
	char awaited[LIMIT_TEXT_BYTES]; /* who must do what before it goes on */
	uint32_t outcome;		/* idle: enum strew_outcome of `version` */
	char text[LIMIT_TEXT_BYTES];
};

struct msg_progress_reply {
	struct progress *models;
	size_t nmodels;
};

struct msg_events {
	uint64_t after; /* number of the last one that is known */
};

/* One update that has ended. */
struct msg_event {
	uint64_t number; /* counted from the broker's start; 0: there is none */
	uint64_t last;	 /* number of the newest one */
	uint64_t unix_ms;
	char model[LIMIT_MODEL_BYTES];
	char ended_in[24]; /* the stage in which it failed or was lost, "": it was not */
	struct msg_report report;
};

struct msg_explain {
	char name[LIMIT_NAME_BYTES];   /* of a tensor or a parameter */
	char model[LIMIT_MODEL_BYTES]; /* "": of any */
	uint64_t from;		       /* rows before it are left out */
};

enum explained_kind { EXPLAINED_HELD = 1, EXPLAINED_PIECE = 2, EXPLAINED_SLOT = 3 };
#define DIMS_BYTES 144 /* "[3, 4096]" of six 64-bit numbers */

/* A box that a trainer rank holds, a piece of a worker, or what was hashed of a bucket. */
struct explained {
	uint32_t kind; /* enum explained_kind */
	char model[LIMIT_MODEL_BYTES], tensor[LIMIT_NAME_BYTES];
	uint32_t dtype;
	char shape[DIMS_BYTES], start[DIMS_BYTES], extent[DIMS_BYTES];
	uint64_t pid;		   /* 0: not of this node */
	char where[ADDRESS_BYTES]; /* held elsewhere: the broker's name */
	uint32_t rank;		   /* held */
	uint32_t replica, part, member;
	char view[DIMS_BYTES]; /* piece: start and extent are in it */
	char parameter[LIMIT_NAME_BYTES];
	uint32_t parameter_dtype;
	char parameter_shape[DIMS_BYTES];
	uint32_t cast, staged, state;
	uint64_t version; /* the group's; held: the model's committed one */
	uint32_t here;	  /* 1: what follows is known */
	uint32_t allocation;
	uint64_t offset; /* bytes, of the box's first element in the allocation */
	char stride[DIMS_BYTES];
	char device[48], handle[16], route[8];
	/* a GPU that its bytes come from (held: go to) by pinned host memory; "": each reaches it
	 */
	char bounce[48];
	uint64_t worker; /* or trainer rank; its id, for MSG_READ; 0: not of this node */
	/* slot: the tensor is in that bucket of version `version`, which went over the wire */
	uint64_t bucket, sum;
	uint32_t fold;	/* buckets of which it is the sum; 0: it was not hashed */
	uint32_t nodes; /* that have it alike */
};

struct msg_explained {
	uint64_t total; /* rows in all */
	struct explained *rows;
	size_t nrows;
};

struct msg_layout {
	uint64_t after;	   /* the worker with the next id; 0: the first */
	uint32_t trainers; /* 1: the trainer rank with the next id instead */
};

struct msg_laid_out {
	uint64_t worker; /* or trainer rank; its id, for MSG_READ; 0: there are no more */
	char model[LIMIT_MODEL_BYTES];
	uint32_t replica, part, member, partial;
	uint64_t pid;
	uint32_t state;	  /* of its group */
	uint64_t version; /* the same */
	uint32_t parts;
	uint64_t bytes, hash; /* of the parts together */
	uint64_t *twins;      /* allocations that are twins of other memory */
	size_t ntwins;
};

struct msg_read {
	uint64_t worker, offset, bytes;
	uint32_t allocation;
};

struct msg_read_out {
	uint32_t state;
	uint64_t version;
};

struct msg_join {
	uint32_t protocol;
	uint64_t broker_id;
	uint64_t host_id;	  /* hash of $NCCL_HOSTID, else of the boot id */
	uint8_t uuid[UUID_BYTES]; /* of the GPU of its slots, zeros for host */
	char backend[8];
	uint32_t nccl; /* ncclGetVersion(), 0: none */
	uint64_t slot_bytes;
	char name[ADDRESS_BYTES]; /* host name and pid, for messages */
};

struct msg_joined {
	uint64_t broker_id;
};

struct msg_nonce {
	uint8_t nonce[NONCE_BYTES]; /* random, of this connection and side */
};

struct msg_epoch {
	uint64_t epoch;
	uint32_t rank, ranks;
	uint32_t carrier;
	uint64_t slot_bytes;
	uint8_t unique_id[UNIQUE_ID_BYTES];
	uint8_t token[TOKEN_BYTES]; /* for MSG_DATA */
	uint64_t *brokers;	    /* broker_id of each, by number: the lead's first */
	size_t nbrokers;
};

struct msg_epoch_ready {
	uint64_t epoch;
	uint32_t code;
	char text[LIMIT_TEXT_BYTES];
};

struct msg_manifest {
	char model[LIMIT_MODEL_BYTES];
	uint32_t parts;
	uint64_t bytes, hash;
	uint64_t *roots; /* broker_id of each trainer rank's broker */
	size_t nroots;
	uint64_t committed; /* version, 0: none yet */
};

struct msg_chosen {
	char model[LIMIT_MODEL_BYTES];
	uint64_t manifest_hash; /* of the whole */
	uint32_t subset;
	uint64_t hash;		/* of the subset's manifest */
	const uint8_t *tensors; /* a bit for each tensor of the manifest; borrowed, as in a part */
	size_t ntensors;	/* bytes */
};

struct msg_begin {
	uint64_t epoch, update;
	char model[LIMIT_MODEL_BYTES];
	uint64_t version, manifest_hash, slot_bytes;
	uint32_t flags, timeout_ms; /* timeout: what is left of the update's */
	uint32_t *roots;	    /* number in this epoch of each trainer rank's broker */
	size_t nroots;
	uint32_t subset; /* 0: everything … */
	uint64_t base;	 /* … else: groups that are not CURRENT at this version sit out */
};

struct msg_groups { /* accept, moved, prepared, applied */
	uint64_t epoch, update;
	struct group_outcome *groups; /* outcome NONE: goes on */
	size_t ngroups;
	uint32_t code; /* applies to the whole broker: WIRE_OK, or why it cannot */
	char text[LIMIT_TEXT_BYTES];
	uint64_t unwanted;    /* accept: tensors that no group of this broker takes */
	struct stages stages; /* moved, prepared */
	uint32_t hash;	      /* accept: what comes by the wire must be hashed */
	uint64_t *hashes; /* moved, prepared: of the buckets, as its node sent or received them */
	size_t nhashes;
	uint32_t *slot_types; /* accept: what its groups want; runs as in plan/slot_types.h */
	size_t nslot_types;
};

struct group_name {
	uint32_t replica, part;
};

struct msg_decision { /* go, commit, abort */
	uint64_t epoch, update;
	uint32_t *replicas; /* go, commit: those that go on; all other groups are done */
	size_t nreplicas;
	uint32_t wire;	      /* go: buckets will be sent … */
	uint32_t hash;	      /* … and hashed at both ends … */
	uint32_t *slot_types; /* … with tensors of these types; plan/slot_types.h */
	size_t nslot_types;
	char text[LIMIT_TEXT_BYTES]; /* abort: why */
	uint32_t part; /* go, in parts: the subset to move; 0: all is there, prepare */
	uint32_t *met; /* go: of each group that the lead has met, on all nodes, its replica */
	size_t nmet;
	struct group_name *own; /* go: the groups on the lead's node that go on */
	size_t nown;
};

struct msg_recall {
	char model[LIMIT_MODEL_BYTES];
	uint64_t update, version; /* version 0: not known */
	uint32_t how;		  /* enum recall_how */
	uint64_t *brokers;	  /* of its epoch, as in MSG_EPOCH; none where how is SEEN */
	size_t nbrokers;
	uint32_t *replicas; /* PREPARED: those that a commit has in any case, as all of each is at m
			     */
	size_t nreplicas;
	struct group_name *own; /* PREPARED: as in MSG_GO */
	size_t nown;
};

struct msg_settled {
	char model[LIMIT_MODEL_BYTES];
	uint64_t update, version;
	uint32_t how; /* ABORTED, COMMITTED or SEEN */
	uint32_t *replicas;
	size_t nreplicas;
};

struct msg_data {
	uint64_t epoch;
	uint32_t rank;
	uint8_t token[TOKEN_BYTES];
};

struct msg_declare {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank, ranks;
	uint32_t parts;
	uint64_t bytes, hash;
};

struct msg_bye {
	uint32_t again; /* 1: it starts itself anew, and comes back at once */
};

struct msg_undeclared {
	char model[LIMIT_MODEL_BYTES];
};

struct msg_undeclare {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint32_t released; /* 1: nothing reads the rank's memory, no update has to end */
};

struct msg_rank_publish {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint64_t version;
	uint32_t flags;
	uint32_t timeout_ms;
	uint32_t subset;
	uint64_t base;
};

struct msg_rank_subset {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint32_t subset;
	const uint8_t *tensors; /* a bit for each tensor of the rank's share; borrowed */
	size_t ntensors;	/* bytes */
};

struct msg_rank_put {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint64_t version;
	uint32_t subset;
};

struct msg_rank_cancel {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint64_t version;
	char text[LIMIT_TEXT_BYTES];
};

struct msg_rank_done {
	char model[LIMIT_MODEL_BYTES];
	uint32_t rank;
	uint64_t version;
};

struct message {
	enum message_type type;
	uint64_t serial;
	union {
		struct msg_hello hello;
		struct msg_welcome welcome;
		struct msg_error error;
		struct msg_ok ok;
		struct msg_register reg;
		struct msg_allocation allocation;
		struct msg_part part;
		struct msg_seal seal;
		struct msg_registered registered;
		struct msg_check check;
		struct msg_checked checked; /* and of MSG_APPLIED_ROUTE */
		struct msg_apply apply;
		struct msg_hold hold;
		struct msg_ready ready;
		struct msg_done done;
		struct msg_trainer trainer;
		struct msg_declared declared;
		struct msg_publish publish;
		struct msg_put put;
		struct msg_cancel cancel;
		struct msg_subset subset;
		struct msg_released released;
		struct msg_report report;
		struct msg_status_reply status_reply;
		struct msg_progress_reply progress_reply;
		struct msg_events events;
		struct msg_event event;
		struct msg_explain explain;
		struct msg_explained explained;
		struct msg_layout layout;
		struct msg_laid_out laid_out;
		struct msg_read read;
		struct msg_read_out read_out;
		struct msg_join join;
		struct msg_joined joined;
		struct msg_nonce nonce;
		struct msg_epoch epoch;
		struct msg_epoch_ready epoch_ready;
		struct msg_manifest manifest;
		struct msg_chosen chosen;
		struct msg_begin begin;
		struct msg_groups groups;     /* MSG_ACCEPT, MSG_MOVED, MSG_PREPARED, MSG_APPLIED */
		struct msg_decision decision; /* MSG_GO, MSG_COMMIT, MSG_ABORT */
		struct msg_data data;
		struct msg_recall recall;
		struct msg_settled settled;
		struct msg_declare declare;
		struct msg_undeclared undeclared;
		struct msg_bye bye;
		struct msg_undeclare undeclare;
		struct msg_rank_publish rank_publish;
		struct msg_rank_put rank_put;
		struct msg_rank_cancel rank_cancel;
		struct msg_rank_done rank_done;
		struct msg_rank_subset rank_subset;
	} u;
	int fds[LIMIT_FRAME_FDS];
	unsigned nfds;
	uint8_t *owned; /* decoded: the payload that msg_part borrows from */
};

/* A zeroed message of that type with no fds. */
void message_init(struct message *message, enum message_type type, uint64_t serial);

/* Closes the fds that are left and frees what decoding allocated. Arrays of a message that
 * is sent are the caller's: set them to NULL before, or let message_finish() free malloc'd ones. */
void message_finish(struct message *message);

/* Only closes the fds: for a message that was not sent and whose arrays are the caller's. */
void message_close_fds(struct message *message);

/* "begin", for logs and errors; "type 77" is "unknown". */
const char *message_name(unsigned type);

/* Whole frame (header and payload) into *ret_frame, malloc'd. -E2BIG, -ENOMEM. */
int message_encode(
	const struct message *message, uint8_t **ret_frame, size_t *ret_len, struct error *err);

/*
 * Payload of a frame whose header was read. The payload is scanned for counts, depth and
 * sizes before msgpack-c sees it. Unknown keys are ignored; a missing, doubled or ill-typed one is
 * -EPROTO and named. Takes `payload` (malloc'd) in any case. fds are not touched.
 */
int message_decode(unsigned type, uint64_t serial, uint8_t *payload, size_t len,
	struct message *ret_message, struct error *err);

#endif
