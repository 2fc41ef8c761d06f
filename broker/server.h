/*
 * The broker put together: what its files share. server.c owns the loop and the
 * listeners, clients.c the Unix socket, groups.c the groups, node.c this broker's
 * part in an update, lead.c the lead's, epoch.c the brokers and their
 * communicator. Everything here belongs to the event loop's thread.
 */
#ifndef BROKER_SERVER_H
#define BROKER_SERVER_H

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

/* A group, with what the pure machine does not know. */
struct team {
	struct group group;
	struct client *clients[LIMIT_MEMBERS];
	uint64_t key;	     /* new with every change of its members: the crew's */
	uint64_t settle_due; /* while the group is settling */
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
	uint64_t declare_serial; /* 0: not declared over this connection to the lead */
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
	bool reading;	  /* a job reads a worker's memory for it */
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
	struct blob blob; /* the sealed manifest, for brokers that join */
	struct update update;
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
	/* A begin that came while a group was catching up; its roots are above. */
	struct msg_begin begin;
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
	uint64_t made_from; /* when the making began */
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

/* server.c */
int server_create(
	const struct server_options *options, struct server **ret_server, struct error *err);
int server_run(struct server *server); /* until it is told to stop; returns the exit code */
/* It has stopped for the next of its kind to begin with nothing: see LIMIT_EPOCHS. */
bool server_starts_again(const struct server *server);
void server_count_epoch(struct server *server);
/* What it does: once, then again and again. A round waits until something is due. */
void server_start(struct server *server);
void server_round(struct server *server);
void server_destroy(struct server *server);
bool server_is_lead(const struct server *server);
/* accept has failed: with -EAGAIN because nobody waits, else for want of something. */
void server_accept_ended(struct server *server, int rc);
void server_fatal(struct server *server, const char *text); /* ends the process, code 1 */
/* The same at once, whatever the mover does, which may be in a driver that never returns. */
void server_abandon(struct server *server, const char *text);
bool server_abandoned(const struct server *server);

/* clients.c */
void clients_accept(void *data, uint32_t events);
void client_drop(struct client *client, const char *why);
void client_send(struct client *client, struct message *message);
void client_error(struct client *client, uint64_t serial, int code, const char *text);
void client_ok(struct client *client, uint64_t serial, uint64_t value);
/* Calls `hit` when that word of the client's page has the value; replaces an earlier watch. */
void client_watch(
	struct client *client, size_t word, uint64_t value, void (*hit)(struct watch *watch));
/* A job that has held the client (client->jobs) is over: it may be freed now. */
void client_job_done(struct client *client);
void clients_tick(struct server *server, uint64_t now);
uint64_t clients_due(const struct server *server);
void clients_drop_all(struct server *server);
void clients_release_due(struct server *server); /* the node has become idle */

/* room.c */
/* False, and a sentence with -E2BIG, if what this one registers is too much. */
bool room_check(const struct client *asking, struct error *err);
/* May one more connect? `*ret_looker`: but it may only look. Another that looks may be dropped for
 * it. */
bool room_for_client(struct server *server, bool *ret_looker);
/* To one that says hello: 0, or -E2BIG if it wants more than to look where that is all. */
int room_welcomes(const struct client *client, struct error *err);

/* groups.c */
int team_place(struct client *client, struct error *err); /* before mapping: is the place free? */
void team_join(struct client *client);			  /* after mapping */
void team_leave(struct client *client, bool lost);
void team_step(struct server *server, struct team *team, const struct group_event *event);
/* The last version that a CURRENT group of the model here holds; 0: none. */
uint64_t teams_version(struct server *server, const char *model);
/* The model's committed version has grown: groups that hold less are STALE. */
void teams_missed(struct server *server, const char *model);
/* A lead or broker that knows nothing of a version that a CURRENT group holds knows it now. */
void team_learn(struct server *server, const struct team *team);
struct team *team_next(struct server *server, struct team *after, const char *model);
void teams_free(struct server *server);

/* catchup.c: groups that have missed a version take it from a sibling here, between updates */
void catchup_look(struct server *server); /* in every round: begins, goes on, ends */
/* An update of that model wants to begin, of everything or of a subset. False: not yet, copies are
 * to end. */
bool catchup_yield(struct server *server, const char *model, bool whole);
bool catchup_quiet(const struct server *server);
/* Which replicas have one group in all: heard with go, and true of a version once it is committed.
 */
void catchup_go(struct server *server, const struct msg_decision *go);
void catchup_committed(struct server *server);
void catchup_free(struct team *team); /* at the end of the process, when the mover is gone */
uint64_t catchup_due(const struct server *server);

/* node.c: this broker's part */
void node_begin(struct server *server, const struct msg_begin *begin);
void node_go(struct server *server, const struct msg_decision *go);
void node_commit(struct server *server, const struct msg_decision *commit);
void node_abort(struct server *server, uint64_t serial, const char *text);
void node_doubt(struct server *server); /* the lead is gone */
/* Nothing of this broker reads the memory of its trainers any more in this update. */
void node_released(struct server *server);
/* A team has said what the node waits for. */
void node_said(struct server *server, struct team *team, enum group_action_type said,
	enum strew_outcome outcome);
/* Answers the lead if everything that it waits for has been said. */
void node_advance(struct server *server);
void node_copy(struct server *server, struct team *team);
void node_member_gone(struct server *server, struct team *team);
void node_forget(struct server *server);
void node_tick(struct server *server, uint64_t now);
uint64_t node_due(const struct server *server);

/* Frees a publication that no job and no update uses any more, after the mover has forgotten it. */
void publication_retire(struct server *server, struct publication *publication);

/* How many groups of that replica there are on all nodes, as far as the lead has met them. 0: it is
 * not known, as there are more of all replicas than a lead counts. */
static inline size_t groups_met(const struct msg_decision *go, uint32_t replica)
{
	size_t n = 0;

	for (size_t i = 0; i < go->nmet && go->nmet < LIMIT_REPORT_GROUPS; i++) {
		n += go->met[i] == replica;
	}
	return n;
}

/* recall.c: how far this broker got in the last update of a model, for the next lead */
void recall_begin(struct server *server); /* these five: of the node's update */
void recall_go(struct server *server, const struct msg_decision *go);
void recall_prepared(struct server *server);
void recall_committed(struct server *server, const struct msg_decision *commit);
void recall_aborted(struct server *server);
void recall_worker(struct client *client); /* it has registered, and says what its memory holds */
void recall_forget(struct server *server, struct model *model);
void recalls_tell(struct server *server); /* to a lead that has been joined */
void recall_settled(struct server *server, const struct msg_settled *said);
/* Lead: what a member remembers. -EPROTO: drop it. */
int member_recall(struct member *member, const struct msg_recall *said, struct error *err);
void member_recalls_free(struct member *member);
void recalls_settle(struct server *server); /* something is known now that was not before */

/* settle.c: groups that hear late how an update has ended */
void settle_team(struct server *server, struct team *team, uint64_t update, uint64_t version,
	enum strew_outcome outcome);
void settle_copy(struct server *server, struct team *team);
void settle_yield(struct server *server, const char *model); /* to an update that begins */
void settle_tick(struct server *server, uint64_t now);
uint64_t settle_due(const struct server *server);

/* lead_hashes.c: false, and a sentence, if the node's differ from those that were said before. */
bool lead_hashes_agree(struct server *server, const struct model *model, uint32_t node,
	const struct msg_groups *answer, char text[LIMIT_TEXT_BYTES]);
void lead_hashes_forget(struct server *server);

/* models.c: what is published, and the trainer ranks */
struct model *model_find(struct server *server, const char *name, bool add);
/* The empty seat of that rank, of a model that may be new. -EINVAL, -EEXIST, -E2BIG. */
int seat_find(struct server *server, const struct msg_trainer *who, struct model **ret_model,
	struct error *err);
/* Lead: empties the seat, withdraws what is published, and aborts what still needs its memory. */
void seat_leave(struct server *server, struct model *model, uint32_t rank, bool released);
#define SEAT_WHERE_BYTES (ADDRESS_BYTES + 48)
/* " at node 1, broker x,", or "" of one that is here. */
void seat_where(const struct seat *seat, char *buf, size_t size);
int rank_place(struct client *client, struct error *err); /* before mapping */
void rank_mapped(struct client *client);		  /* after mapping */
void rank_gone(struct client *client);
void model_set(struct server *server, struct model *model, struct publication *publication);
void model_drop_publication(struct server *server, struct model *model);
/* At a broker that joined: the lead has withdrawn that manifest; and all, as a lead that is joined
 * says anew which stand. */
void model_undeclared(struct server *server, const char *name);
void models_undeclared(struct server *server);
void models_free(struct server *server);

/* What an update of that subset (0: everything) publishes; NULL: it is not known. */
static inline struct publication *model_publication(const struct model *model, uint32_t subset)
{
	if (!subset) {
		return model->publication;
	}
	return subset <= model->nsubsets ? model->subsets[subset - 1]->publication : NULL;
}

/* Parameters that no tensor covers keep their bytes, and are no error. */
static inline bool node_partial(const struct node *node)
{
	return (node->flags & STREW_PUBLISH_PARTIAL) || node->subset;
}

/* subsets.c: tensors that are published by themselves */
/*
 * What a rank of any broker names. The answer to `serial` goes out when every rank has named its
 * part. Refused: a negative code, and nothing has changed.
 */
int subset_take(struct server *server, struct model *model, uint32_t rank,
	const struct msg_subset *said, uint64_t serial, struct error *err);
void lead_subset(struct client *client, const struct message *message);
/* Keeps what a rank names, in its seat; the numbers come in order. */
int choices_keep(struct seat *seat, const struct manifest *declared, const struct msg_subset *said,
	struct error *err);
void choices_cut(struct seat *seat, uint32_t n); /* forgets those behind the first n */
void seat_finish(struct seat *seat);
void subsets_drop(struct server *server, struct model *model);
void lead_send_subsets(struct model *model, struct member *member);
/* At a broker that joined. */
int subset_chosen(struct server *server, const struct msg_chosen *said, struct error *err);

/* parts.c: an update in parts */
static inline bool node_in_parts(const struct node *node)
{
	return node->flags & PUBLISH_PARTS;
}
/* What a rank of any broker puts. Refused: a negative code, and nothing has changed. */
int lead_take_put(
	struct model *model, uint32_t rank, uint64_t version, uint32_t subset, struct error *err);
/* Makes that subset what the node moves next; until node_part_end(). */
int node_part_begin(struct server *server, uint32_t subset, struct error *err);
void node_part_end(struct server *server);

/* manifests.c: declarations become one manifest */
/* From the brokers of all ranks: whose memory is here, and where each box lies. -EPROTO: the
 * manifest is not what the trainers here have declared. */
int publication_bind(struct server *server, struct model *model, struct publication *publication,
	struct error *err);
void model_try_seal(struct server *server, struct model *model);
void lead_send_manifest(struct model *model, struct member *member);
/* `own`: whose rank is gone, and so knows; NULL: nobody's. */
void lead_send_undeclared(
	struct server *server, const struct model *model, const struct member *own);

/* members.c (lead): the trainer ranks of other brokers. Negative: drop the member. */
int member_part(struct member *member, const struct msg_part *part, struct error *err);
int member_declare(struct member *member, const struct message *message, struct error *err);
int member_undeclare(struct member *member, const struct message *message, struct error *err);
int member_publish(struct member *member, const struct message *message, struct error *err);
int member_put(struct member *member, const struct message *message, struct error *err);
int member_cancel(struct member *member, const struct message *message, struct error *err);
int member_subset(struct member *member, const struct message *message, struct error *err);
int member_done(struct member *member, const struct msg_rank_done *done, struct error *err);
void member_ranks_lost(struct member *member); /* before the member itself is */
/* The report for one rank there, if it has published; the message's serial is set. */
void member_report(struct seat *seat, const struct message *report);

/* ranks.c (a broker that joined): its own trainer ranks, and what its lead says of them */
void ranks_joined(struct server *server);
void ranks_link_down(struct server *server);
void ranks_declare(struct client *client);
void ranks_gone(struct client *client);
void ranks_subset(struct client *client, const struct message *message);
void ranks_publish(struct client *client, const struct message *message);
void ranks_put(struct client *client, const struct message *message);
void ranks_cancel(struct client *client, const struct message *message);
void ranks_released(struct server *server);  /* as node_released() */
void ranks_committed(struct server *server); /* the node begins its commit */
void ranks_node_idle(struct server *server);
/* 1 if the message answers a request of this file, else 0. Negative: the link is broken. */
int ranks_answer(struct server *server, const struct message *message, struct error *err);

/* lead.c: publishing and decisions */
void lead_rank_lost(struct server *server, struct model *model, uint32_t rank, bool released,
	const char *where);
void lead_publish(struct client *client, const struct message *message);
int publish_check(const struct msg_publish *publish, struct error *err); /* at any broker */
/* What a rank of any broker publishes. Refused: a negative code, and nothing has changed. */
int lead_take_publish(
	struct model *model, uint32_t rank, const struct msg_publish *publish, struct error *err);
void lead_stream_done(struct server *server, struct model *model, uint32_t rank);
void lead_put(struct client *client, const struct message *message);
void lead_cancel(struct client *client, const struct message *message);
/* A rank gives that version up, if update_check_cancel() says that it may. */
void lead_rank_cancels(struct server *server, struct model *model, uint32_t rank, uint64_t version,
	const char *where, const char *why);
/* A node's word about the update under way. */
void lead_answer(struct server *server, uint32_t node, enum message_type type,
	const struct msg_groups *answer);
void lead_released(struct server *server, uint64_t serial);
void lead_member_lost(struct server *server, uint32_t rank, const char *name);
void lead_ready(struct server *server);	     /* the epoch is settled: begin what is queued */
bool lead_busy(const struct server *server); /* an update is between begin and report */
void lead_tick(struct server *server, uint64_t now);
uint64_t lead_due(const struct server *server);

/* epoch.c and door.c (lead), and join.c (joiner) */
void members_accept(void *data, uint32_t events);
void member_send(struct member *member, struct message *message);
void member_refuse(struct member *member, uint64_t serial, const struct error *err);
struct member *member_by_rank(struct server *server, uint32_t rank);
void epoch_changed(struct server *server);
void epoch_tick(struct server *server, uint64_t now);
uint64_t epoch_due(const struct server *server);
void epoch_submit(struct server *server, const struct msg_epoch *epoch, int *data_fds);
void epoch_made(struct job *job);
void members_drop_all(struct server *server);
/* Those that an update has taken for lost; they join again if they live. */
void members_drop_lost(struct server *server, const bool lost[LIMIT_BROKERS]);
void join_start(struct server *server);
void join_tick(struct server *server, uint64_t now);
uint64_t join_due(const struct server *server);
void join_answer(struct server *server, enum message_type type, struct msg_groups *answer);
void join_epoch_made(struct server *server, struct job_epoch *job);
void join_stop(struct server *server);
/* To the lead, if there is a connection. */
void join_send(struct server *server, struct message *message);
void join_send_blob(struct server *server, const struct blob *blob, enum part_of of);
void join_fill(struct server *server, struct msg_join *ret_join);

/* missed.c: brokers whose groups scope=all cannot ask (lead) */
void missed_lost(const struct member *member); /* before the member itself is */
/* An epoch stands: who is new in it is missed no more. Before blame_none(), which makes it old. */
void missed_stand(struct server *server);
/* One that is missed and not about to come back, or NULL. */
const char *missed_name(struct server *server, uint64_t now);
bool missed_come_back(const struct server *server); /* does one start itself anew? */
void missed_tick(struct server *server, uint64_t now);
uint64_t missed_due(const struct server *server);

/* keys.c: the beginning of a connection between brokers. -EPERM: a key is there at one end only. */
int member_keyed(const struct member *member, const struct message *message, struct error *err);
void member_warn(const struct member *member, const char *why); /* it was refused */
int member_nonce(struct member *member, const struct msg_nonce *said, struct error *err);
int join_nonce(struct server *server, struct error *err);
int join_keys(struct server *server, const struct message *message, struct error *err);

/* server.c: says that the broker is ready, once */
void server_ready(struct server *server);

/* status.c */
void status_answer(struct client *client, uint64_t serial);

/* progress.c */
void progress_answer(struct client *client, uint64_t serial);

/* history.c: updates that have ended, into server->events */
void history_lead(struct server *server, const char *model, const struct msg_report *report);
void history_node(struct server *server, enum strew_outcome outcome, const char *text);
void history_catch(struct server *server, const struct team *team, uint64_t bytes);
void events_answer(struct client *client, const struct message *message);

/* sums.c: those of the node's update. Noted when a move has ended, kept if it is committed. */
void sums_note(struct server *server);
void sums_commit(struct server *server);
void sums_free(struct sums *sums); /* all of a list; NULL is fine */

/* explain.c */
void explain_answer(struct client *client, const struct message *message);

/* readback.c */
void layout_answer(struct client *client, const struct message *message);
void read_begin(struct client *client, const struct message *message);

#endif
