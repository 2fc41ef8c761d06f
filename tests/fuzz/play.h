/*
 * A whole broker on the host backend, with the stand-ins around it, and up to ENDS peers that say
 * what the input tells them to. It is played turn by turn: a round of the event loop, the mover's
 * jobs, and what the peers read. Peers may answer by themselves, as good ones would, so that a
 * short input gets deep into an update before it goes wrong.
 */
#ifndef FUZZ_PLAY_H
#define FUZZ_PLAY_H

#include "broker/server.h"
#include "fuzz/says.h"
#include "fuzz/stand_ins.h"
#include "ipc/blob.h"

#define ENDS 8
#define MODEL "m"
#define PLAY_MEMORY (256u << 10) /* of trainers, and as much of workers */

enum end_kind {
	END_NONE,
	END_CLIENT, /* a process at the Unix socket */
	END_MEMBER, /* another broker, at the lead's port */
	END_LEAD,   /* the lead, of a broker that joins */
	END_DATA,   /* carries buckets */
};

/* A connection of the broker's, seen from its other side. */
struct end {
	enum end_kind kind;
	struct conn *conn;
	struct page page; /* a client's */
	uint64_t serial, word;
	bool automatic; /* answers as a good peer would */
	bool mute;	/* reads nothing */
	uint8_t cut; /* the next frame is sent in two pieces, the first of this length; 0: whole */
	/* what it has heard */
	unsigned heard[MSG_RANK_CANCEL + 1];
	uint32_t outcome; /* of the last report */
	struct msg_epoch epoch;
	uint8_t ready_in; /* turns until it is ready for it, as the lead must have its data first */
	struct blob blob; /* a lead's: the share that is being declared */
	uint64_t publish_serial;
	uint64_t version;		  /* that it has published last, or been told of */
	bool in_parts;			  /* that one, and … */
	uint32_t part;			  /* … what is to be moved next of it */
	uint64_t update, epoch_of_update; /* a lead's, while it waits for the next part */
};

struct play {
	struct server *server;
	struct end ends[ENDS];
	bool held; /* the mover does nothing */
};

extern struct play play;

typedef void play_op(struct input *input);

/* play.c */
enum play_role { PLAY_ALONE, PLAY_LEADS, PLAY_JOINS };
void play_turn(unsigned n);
/*
 * One input: the script in it, and the claims behind it: a good process is answered, nothing
 * waits for ever, nobody who left is remembered, a good update goes through (looked at now
 * and then, and not without a lead), and nothing has leaked.
 */
void play_input(
	enum play_role role, const uint8_t *data, size_t size, play_op *const *ops, size_t nops);
struct end *play_end(enum end_kind kind, int fd); /* takes fd; closed if there is no place */
void end_close(struct end *end);
void end_send_bytes(struct end *end, const uint8_t *bytes, size_t n, const int *fds, unsigned nfds);
/* Sends and finishes the message; its fds are closed. */
void end_send(struct end *end, struct message *message);

/* play_memory.c: what is lent, and what is said of it. Tensors a [16, 8] f32, b [40] bf16,
 * c [200, 150] f32 */
enum {
	SAID_LAYOUT,	  /* all, where the trainer has it */
	SAID_LAYOUT_CAST, /* some rows, in other types and with strides */
	SAID_LAYOUT_PART, /* one tensor */
	SAID_WHOLE,	  /* a declaration by the only rank */
	SAID_FIRST,	  /* by rank 0 of 2 … */
	SAID_SECOND,	  /* … and by rank 1 */
	SAID_SHARE_WHOLE, /* the same as shares */
	SAID_SHARE_FIRST,
	SAID_SHARE_SECOND,
	SAID_MANIFEST, /* of the only rank, whole */
	SAID_MANIFEST_BOTH,
	SAID_BLOBS,
};
const struct blob *play_blob(unsigned which);
enum { FD_TRAINER, FD_WORKER, FD_SHORT, FD_UNSEALED, FD_EVENT, FD_PAGE, FD_KINDS };
int play_fd(unsigned kind);	/* a copy */
void play_poison_memory(void);	/* the workers' */
bool play_memory_arrived(void); /* by SAID_LAYOUT */

/* play_clients.c */
struct end *client_connect(void); /* NULL: no place */
void client_hello(struct end *end, enum role role);
void client_register(struct end *end, struct msg_register reg, const struct blob *layout);
void client_declare(struct end *end, struct msg_trainer trainer, const struct blob *declared);
void client_publish(struct end *end, uint64_t version);
void client_subset(struct end *end, uint32_t subset, uint8_t bits);
/* The first part publishes that version; what follows is of the version that was published last. */
void client_open_parts(struct end *end, uint64_t version, uint32_t subset);
void client_put(struct end *end, uint32_t subset);
void client_cancel(struct end *end);
void client_heard(struct end *end, const struct message *message);

/* play_brokers.c */
void member_connect(bool automatic);
void member_heard(struct end *end, const struct message *message);
void member_turn(struct end *end);
void lead_heard(struct end *end, const struct message *message);
void lead_epoch_named(struct end *end, uint32_t ranks);
/* That these tensors are a subset of what is published; false if nothing is, or they are none. */
bool lead_fill_chosen(struct message *message, const char *name, uint32_t subset,
	const uint8_t *tensors, size_t n);
void blob_tell(struct end *end, const struct blob *blob, enum part_of of);

/* play_ops.c: what an input can do */
void play_script(struct input *input, play_op *const *ops, size_t nops);
play_op op_turn, op_time, op_mover, op_close, op_raw, op_cut, op_mode, op_say_client, op_client,
	op_register, op_declare, op_publish, op_word, op_member, op_say_member, op_share,
	op_say_lead, op_manifest, op_epoch, op_bucket, op_refuse;

#endif
