/*
 * What a broker knows: its clients and groups, models and their trainer ranks, its part in an
 * update, the other brokers. Who works on it is in server.h. All of it belongs to the event loop's
 * thread.
 */
#ifndef BROKER_STATE_H
#define BROKER_STATE_H

#include "broker/events.h"
#include "broker/group.h"
#include "broker/loop.h"
#include "broker/moves.h"
#include "broker/recovery.h"
#include "broker/session.h"
#include "broker/trust.h"
#include "broker/update.h"
#include "ipc/socket.h"
#include "strew/trainer.h"
#include "wire/seal.h"

struct server_options {
	const char *socket; /* NULL: the default path */
	const char *listen; /* NULL: a lead without a network, or a joiner */
	const char *join;
	const char *key_file; /* NULL: no key, and loopback only */
	enum gpu_kind backend;
	const char *device;
	uint64_t slot_bytes;
	uint32_t slots;
	bool pinned_shadows;	 /* of staged groups */
	int ready_fd;		 /* -1: none */
	uint32_t join_timeout_s; /* for the first join */
};

/* Of one connection, so that a busy one does not starve the others. */
#define MESSAGES_A_ROUND 64
#define ACCEPTS_A_ROUND 64 /* of one listener, for the same reason */

struct server;
struct client;
struct member;

enum catch_stage {
	CATCH_NONE,
	CATCH_PLANNING, /* does the sibling cover it? The group knows of nothing yet */
	CATCH_UNDER_WAY /* as in an update: see its phase */
};

/* A group on its way to the version that a sibling here holds (catchup.c). */
struct catching {
	enum catch_stage stage;
	bool stopping, job_running;
	uint64_t version;
	uint64_t from_key; /* the sibling, as long as it is the same crew … */
	uint32_t from_replica, from_part;
	uint64_t deadline; /* of a gate for which a resume waits; UINT64_MAX: none does */
	uint64_t yield_by; /* of copies for which an update waits; 0: none does */
	uint64_t mover_ns;
	struct job_catch job;
	/* Siblings that were tried in vain by this crew for this version. */
	uint64_t tried_key, tried_version;
	uint64_t tried_from[LIMIT_GROUPS];
	size_t ntried;
};

/* The last update that went on to write a group (brought.c). */
struct written {
	uint64_t hash; /* of its manifest; 0: none here, or by catching up */
	uint64_t version;
	uint64_t committed; /* at its begin, as far as this broker knew */
};

/* A group, with what the pure machine does not know. */
struct team {
	struct group group;
	struct client *clients[LIMIT_MEMBERS];
	uint64_t key;	     /* new with every change of its members: the crew's */
	uint64_t settle_due; /* while the group is settling */
	struct written written;
	/* in the node's update: */
	bool taking_part; /* begin was given to it */
	bool said;	  /* it has said what the node waits for */
	enum strew_outcome outcome;
	/* For catching up: the last go has met no other group of its replica, on any node; and what
	 * was committed then. */
	bool alone;
	uint64_t alone_at;
	struct catching catching;
	struct team *next;
};

/* At a broker that joined, of a trainer here: what the lead was told, and what it has answered. */
struct told {
	uint64_t declare_serial; /* 0: not declared over this connection to the lead … */
	bool declare_due;	 /* … but about to be: what others have declared is on its way */
	bool declared;		 /* every rank has */
	uint64_t publish_serial; /* 0: nothing is being published */
	uint64_t request_serial; /* the trainer's own */
	uint64_t version;
	bool taken;	      /* by the lead, which will report */
	uint64_t put_serial;  /* of our request to put a part, 0: none waits */
	uint64_t put_request; /* the trainer's own */
	bool lent;	      /* the memory may be read */
	bool committed;	      /* by the lead's word; it has not reported yet */
	/* The lead is gone, nobody will report; prepared was said here, and nothing since. */
	bool abandoned, prepared;
	uint64_t subset_serial;	 /* of our request to name a subset, 0: none waits */
	uint64_t subset_request; /* the trainer's own */
	uint32_t subset;
	uint32_t subsets;	 /* that the lead has said ok to: they stand */
	uint64_t cancel_serial;	 /* of our request to give an update up, 0: none waits */
	uint64_t cancel_request; /* the trainer's own */
};

/* One connection of the Unix socket. */
struct client {
	struct server *server;
	struct client *next;
	uint64_t id;
	struct conn *conn;
	struct loop_source *source;
	struct peer peer;
	struct page theirs, ours;
	struct session session;
	struct watch watch; /* ready or publish word */
	uint64_t deadline;  /* for hello, and from register to seal */
	struct team *team;  /* a worker that is live */
	uint32_t member;
	uint64_t resume_serial, withdraw_serial;
	struct model *model; /* a trainer that is sealed */
	bool declared;	     /* a trainer's seal was answered */
	struct told told;
	bool release_due; /* gone; its memory is unmapped when the node is idle */
	bool reading;	  /* a job reads a worker's memory for it … */
	bool read_out;	  /* … or has: the answer was sent, and was not seen to be taken yet */
	bool looker;	  /* it came when no connection was left but to look: see room.c */
	bool gone;	  /* the connection is closed; freed when its last job is done */
	unsigned jobs;
};

/* Which tensors of its declaration a rank has in each subset that it has named: a bit for each. */
struct choices {
	uint8_t *v[LIMIT_SUBSETS]; /* subset n is v[n - 1] */
	uint32_t n;
};

/* The place of one trainer rank: empty, or that of a client here or (lead) of a member's. */
struct seat {
	struct client *client;
	struct member *member;
	bool ready; /* all of it was declared, and its memory is mapped where it lies */
	struct choices *choices; /* owned; NULL: none yet */
	/* lead: the request to name a subset that waits for the other ranks; 0: none */
	uint64_t subset_serial;
	uint32_t subset;
	/* of a member's: */
	struct manifest declared; /* owned */
	uint64_t declare_serial;
	bool answered;		 /* declare was */
	uint64_t publish_serial; /* 0: nothing that waits for its report */
};

/* Tensors of a model that can be published by themselves. */
struct subset {
	struct publication *publication;
	uint8_t *tensors; /* a bit for each tensor of the whole manifest; owned */
};

/* What one move of an update had sent over the wire, by bucket. */
struct sums {
	struct sums *next; /* of another part of the same update */
	uint64_t version, slot_bytes;
	uint64_t key; /* of the publication that was moved */
	struct slot_types slot_types;
	uint32_t nodes; /* that have sent or received it */
	uint64_t *v;	/* owned; NULL: it was not hashed */
	size_t n;
};

/* Of the last update of a model: how far this broker got, and what it takes to go on. */
struct remembered {
	struct recall recall;
	struct publication *publication; /* counted; NULL: nothing is left to be committed */
	bool partial;
	uint32_t subset; /* 0: everything … */
	uint64_t base;	 /* … else on this version */
};

/* At the lead: which versions have come with one manifest (brought.c). */
struct brought {
	uint64_t hash, base, upto; /* all versions above base, to upto, with that one */
	uint64_t begun;		   /* the hash of what is under way, or was last */
};

/* At the lead: the groups that were there at a model's last commit (seen.c). */
struct seen_group {
	uint32_t replica, part;
	uint64_t broker; /* its broker_id */
	uint64_t until;	 /* since that was lost, it is awaited until then; 0: it was not */
};

struct seen {
	struct seen_group *v; /* owned; at most LIMIT_REPORT_GROUPS */
	size_t n;
};

/* A model that is published here (lead), or was announced by the lead (others). */
struct model {
	char name[LIMIT_MODEL_BYTES];
	struct model *next;
	uint64_t committed;	   /* version */
	uint32_t committed_subset; /* that `committed` was of, 0: everything … */
	uint64_t committed_base;   /* … else on this version */
	bool decided; /* by a lead whom this broker has heard, not learnt from workers */
	struct remembered remembered;
	uint64_t last_use;
	struct publication *publication;       /* NULL: none is sealed */
	struct subset *subsets[LIMIT_SUBSETS]; /* of it; number n is subsets[n - 1] */
	uint32_t nsubsets;
	struct sums *sums; /* of the last committed update that went over the wire; owned */
	uint32_t ranks;	   /* 0: all seats are empty */
	struct seat seats[LIMIT_RANKS];
	/* lead: */
	struct shared_blob *blob; /* the sealed manifest, for brokers that join; NULL: none yet */
	struct update update;
	struct brought brought;
	struct seen seen;
	/* others: */
	uint64_t doubted;	 /* version that may be committed: the lead was gone then */
	uint64_t leaving_serial; /* of the last undeclare that the lead has not answered, 0: none */
};

/* Stages of this broker's part in an update. */
enum node_stage {
	NODE_IDLE,
	NODE_PLANNING, /* plans are made, groups are asked; accept is due */
	NODE_ACCEPTED,
	NODE_MOVING,  /* prepared is due, or in parts moved */
	NODE_PUTTING, /* in parts: one has moved, the next go is due */
	NODE_PREPARED,
	NODE_COMMITTING, /* applied is due */
	NODE_STOPPING,	 /* aborted while the mover runs; applied is due */
};

const char *node_stage_name(enum node_stage stage);

struct node {
	enum node_stage stage;
	uint64_t epoch, serial, version;
	uint32_t flags;
	uint32_t subset; /* 0: everything is published … */
	uint64_t base;	 /* … else on this version */
	bool wire;
	uint64_t deadline; /* of the stage: groups that are late then sit out */
	uint64_t gate_deadline, update_deadline;
	struct publication *publication;
	uint32_t roots[LIMIT_RANKS]; /* number in the epoch of each trainer rank's broker */
	struct team *teams[LIMIT_GROUPS];
	size_t nteams;
	struct crew crews[LIMIT_GROUPS]; /* parallel to teams; workers are the node's copy */
	struct crew going[LIMIT_GROUPS]; /* those of a move or a commit, borrowed from crews */
	struct team *going_teams[LIMIT_GROUPS];
	size_t ngoing;
	struct error errors[LIMIT_GROUPS];
	uint64_t unwanted;
	struct slot_types wanted;		   /* by the groups that were planned for */
	struct slot_types slot_types;		   /* that the lead has decided on */
	struct group_outcome absent[LIMIT_GROUPS]; /* groups that cannot take part at all */
	size_t nabsent;
	struct job_plan plan;
	struct job_move move;
	struct job_commit commit;
	bool job_running;
	bool touched;	  /* by the move */
	bool hash;	  /* what is moved by the wire */
	uint64_t *hashes; /* of the last move; owned */
	size_t nhashes;
	struct sums *sums; /* of its moves so far; owned */
	char abort_text[LIMIT_TEXT_BYTES];
	uint64_t wire_bytes;
	struct stages stages; /* of the move, of all parts together */
	/* in parts: */
	uint32_t part;		    /* the subset that moves; 0: none, or not in parts */
	struct publication *moving; /* its publication, while it moves */
	struct slot_types part_wanted, part_types; /* what the two above come to for it */
	/* A begin that came while a group was catching up, or before the last update has ended
	 * here. */
	struct msg_begin begin; /* its roots are these: */
	uint32_t begin_roots[LIMIT_RANKS];
	uint64_t begin_came; /* when */
	bool begin_waits;
};

/* What a member remembers of one model. */
struct member_recall {
	char model[LIMIT_MODEL_BYTES];
	struct recall recall;
	bool said_open; /* the log has it that nothing follows yet */
	struct member_recall *next;
};

enum member_state { MEMBER_CONNECTED, MEMBER_JOINED, MEMBER_IN_EPOCH };

/* Another broker, seen by the lead. */
struct member {
	struct server *server;
	struct member *next;
	struct conn *conn;
	struct loop_source *source;
	enum member_state state;
	char address[SOCKET_REMOTE_BYTES];
	struct msg_join join;
	uint32_t rank;	   /* in the epoch */
	bool ready;	   /* the epoch's communicator is made */
	bool stood;	   /* it was in one that stood */
	bool judged;	   /* it has left in order, or what it did is on the list */
	int data_fd;	   /* TCP carrier: its data connection for the epoch being made */
	uint64_t deadline; /* for join */
	struct blob blob;  /* parts of what a trainer rank there declares */
	struct member_recall *recalls; /* owned */
	bool left;		       /* in order: it has said so … */
	bool again;		       /* … or that it starts itself anew */
};

/* One that was lost without a word, or starts itself anew (missed.c). */
struct missed {
	struct msg_join join;
	uint64_t until;
	uint64_t back_by; /* it has said that it comes back; UINT64_MAX: it has not, or is late */
};

enum epoch_state {
	EPOCH_NONE,	 /* alone: no communicator is needed */
	EPOCH_GATHERING, /* the membership has changed; waits a moment for more */
	EPOCH_TELLING,	 /* what was queued for its brokers is on its way: manifests, of new ones */
	EPOCH_NAMING,	 /* the mover makes its unique id, or ends the last communicator */
	EPOCH_MAKING,	 /* communicators are being made */
	EPOCH_READY,
};

struct epoch {
	enum epoch_state state;
	uint64_t number;
	uint32_t rank, ranks;
	uint64_t brokers[LIMIT_BROKERS]; /* broker_id of each, by number */
	enum carrier_kind carrier;
	uint64_t slot_bytes;
	uint8_t token[TOKEN_BYTES];
	uint64_t deadline;
	uint8_t unique_id[UNIQUE_ID_BYTES];
	bool job_running, own_ready, own_submitted;
	struct job_epoch job;
	uint64_t made_from; /* when the telling, then the making, began */
	bool failing;	    /* somebody's part of it has failed */
	struct trust trust;
	unsigned suspects_most; /* that may be tried at once; 0: all */
};

/* The joiner's connection to its lead. */
struct lead_link {
	struct conn *conn; /* NULL: not connected */
	struct loop_source *source;
	int connecting;		   /* fd, -1: none */
	struct socket_place place; /* where the lead's name led to last … */
	bool placed;		   /* … if it ever did; else */
	char place_why[LIMIT_TEXT_BYTES];
	struct lookup *lookup; /* that goes on beside the loop; NULL: none */
	struct loop_source *lookup_source;
	uint64_t look_up_at;	    /* not before that again */
	uint8_t nonce[NONCE_BYTES]; /* that was said to the lead */
	bool joined, joined_once;
	bool busy_said; /* the log has why it may not join yet … */
	bool key_said;	/* … and what is wrong with the key there */
	uint64_t retry_at, deadline, give_up_at;
	uint64_t succeed_until; /* 0: nobody was in our place */
	uint32_t retry_ms;
	uint64_t next_serial;			 /* of requests to it */
	struct blob blob;			 /* parts of a manifest */
	struct msg_epoch pending;		 /* the last epoch that the lead has named … */
	uint64_t pending_brokers[LIMIT_BROKERS]; /* … and its brokers */
	bool pending_due;			 /* it is not submitted yet */
	bool submitted;				 /* the mover's job is that of `pending` */
	int *data_fds;				 /* of `pending`, until it is submitted; owned */
	int data_connecting;			 /* fd, -1: none */
	struct loop_source *data_source;
};

struct server {
	struct server_options options;
	char socket_path[108];
	char name[ADDRESS_BYTES];
	uint64_t broker_id, started_ns;
	struct gpu *gpu;
	struct seal_key key;	      /* of all brokers, if there is a key file */
	uint8_t uuid[GPU_UUID_BYTES]; /* of the slots' GPU, for join */
	struct loop *loop;
	uint64_t awake_until; /* the loop does not sleep before this */
	struct mover *mover;
	struct moves *moves;
	struct events *events;
	int listener, tcp_listener;
	uint64_t accept_at; /* nothing is accepted until then, for want of descriptors; 0: it is */
	struct loop_source *listener_source, *tcp_source, *mover_source, *signal_source;
	int signal_fd;
	struct client *clients;
	size_t nclients, nlookers; /* all, and those of them beyond LIMIT_CONNECTIONS */
	uint64_t next_id;
	struct team *teams;
	struct model *models;
	struct node node;
	struct epoch epoch;
	struct member *members;
	struct missed missed[LIMIT_BROKERS]; /* lead */
	size_t nmissed;
	uint64_t warn_at; /* when a refused broker is worth a warning again */
	uint32_t unsaid;  /* refused since the last one */
	struct lead_link lead;
	struct hashes_said {
		uint64_t *v; /* owned; NULL: none yet */
		size_t n;
		uint32_t node;
	} hashes; /* lead: of the active update, the first that came */
	uint64_t next_serial, next_key;
	bool wire_used;	      /* by the active update … */
	bool hash_used;	      /* … and hashed */
	struct model *active; /* lead: its update is between begin and report */
	uint64_t updates, aborted;
	uint32_t epochs; /* communicators that were made */
	bool ready, draining, stop, again, abandoned;
	int exit_code;
};

#endif
