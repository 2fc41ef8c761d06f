/*
 * The whole world of one exploration, small and flat: what the broker's state machines hold on
 * two nodes (packed from and into the real structs, live.c), and what surrounds them: the
 * workers and what their memory really holds, the trainer, the mover's jobs, the connection
 * between the brokers. Two worlds are the same state if their bytes are the same.
 */
#ifndef EXPLORE_WORLD_H
#define EXPLORE_WORLD_H

#include "broker/server.h"
#include "strew/trainer.h"

#define NODES 2u
#define GROUPS 2u
#define MEMBERS 2u
#define JOBS 8u	   /* of a mover */
#define LETTERS 8u /* of a connection, each way */
#define WORDS 8u   /* of a worker to its broker */

/* What is explored, and how far. */
struct config {
	unsigned nodes;		 /* 1: the lead alone; 2 */
	unsigned ngroups;	 /* 1 or 2 */
	uint8_t node_of[GROUPS]; /* each group's node */
	uint8_t replica[GROUPS]; /* its replica; the part is its number */
	uint8_t members[GROUPS];
	enum strew_gate gate[GROUPS];
	enum strew_apply apply[GROUPS];
	bool scope_all;
	unsigned faults, updates;
	const char *mutation; /* NULL: the product as it is */
};

extern struct config config;

/* Memory's content: the number of the publish that it came from; 0 is what engines start with. */
struct w_group {
	uint8_t exists, phase, state, version, update, update_version, has_text, npresent;
	uint8_t taking_part, said, outcome, placed;
	struct {
		uint8_t present, checked, ready, asking, stale, version;
	} member[MEMBERS];
	/* On its way to what it has missed; the sibling is the other group of its node. */
	struct {
		uint8_t alone_at, following, stage, stopping, running, version, waits;
		uint8_t same_from, same_to, tried; /* by keys: crews that are as they were */
		uint8_t lump, more, failed;	   /* of its last job */
	} caught;
};

enum job_kind {
	JOB_NONE,
	JOB_IMPORT,
	JOB_PLAN,
	JOB_MOVE,
	JOB_COMMIT,
	JOB_RELEASE,
	JOB_EPOCH,
	JOB_CATCH
};
enum job_progress { JOB_QUEUED, JOB_BEGUN, JOB_READ };

struct w_job {
	uint8_t kind, progress, failed;
	uint8_t workers;  /* set: whose memory it works on */
	uint8_t errors;	  /* plan: set of groups that it found not to fit */
	uint8_t wire;	  /* move */
	uint8_t note_due; /* move: released is not told yet */
	uint8_t serial;	  /* the update's, or the epoch's number */
	uint8_t gone;	  /* import, epoch: nobody waits for it; move: it reads a dead trainer's */
	/* catch: */
	uint8_t step, group;
	uint8_t from; /* set: whose memory it reads … */
	uint8_t content;
};

#define LUMPS 2u /* of catching up */

struct w_node {
	uint8_t alive;
	uint8_t stage, epoch, serial, version, wire, deadline, teams, going, absent;
	uint8_t absent_state[GROUPS];
	uint8_t job_running, touched, has_publication, cancel;
	uint8_t knows, doubted, committed,
		announced; /* of the model: version; is there a publication? */
	uint8_t epoch_state, epoch_number, epoch_ranks;
	uint8_t crew_dead, crew_freed; /* workers of the update's crews that died, were unmapped */
	uint8_t excused;	       /* was not there when the last decision was taken */
	uint8_t begin_waits, begin_version;
	struct w_job jobs[JOBS];
};

struct w_update {
	uint8_t state, serial, version, published, done, released, nnodes, answered, lost, outcome;
	uint8_t has_text, active, replicas, known;
	struct {
		uint8_t outcome, state, has_text;
	} group[GROUPS];
};

enum worker_stage { W_DEAD, W_NEW, W_IMPORTING, W_LIVE, W_LEAVING };
enum word_kind {
	WORD_NONE,
	WORD_CHECKED,
	WORD_UNFIT,
	WORD_IS_READY,
	WORD_RESUME,
	WORD_WITHDRAW,
	WORD_EOF
};

struct w_worker {
	uint8_t stage;
	uint8_t content, partial;     /* of live memory */
	uint8_t shadow, shadow_whole; /* of staged memory */
	uint8_t fresh;		      /* a new process whose memory no update has reached */
	uint8_t running;	      /* the engine uses its memory; false: it stands */
	uint8_t said_ready, asked, denied, hold; /* between engine and broker */
	uint8_t pending, heard_state, heard_version;
	uint8_t session; /* enum session_state of the broker's client, 0: none */
	uint8_t watched; /* the broker waits for its ready word */
	struct {
		uint8_t kind, update;
	} words[WORDS];
};

struct w_trainer {
	uint8_t alive, seated;
	uint8_t publishing; /* content, 0: nothing */
	uint8_t version, streaming, lent, contents;
};

enum letter_kind {
	LETTER_NONE,
	LETTER_JOIN,
	LETTER_JOINED,
	LETTER_MANIFEST,
	LETTER_EPOCH,
	LETTER_EPOCH_READY,
	LETTER_BEGIN,
	LETTER_GO,
	LETTER_COMMIT,
	LETTER_ABORT,
	LETTER_ACCEPT,
	LETTER_PREPARED,
	LETTER_APPLIED,
	LETTER_EOF
};

struct w_letter {
	uint8_t kind, epoch, update, version, code, wire;
	uint8_t groups; /* decisions: set of replicas; answers: set of groups */
	uint8_t alone;	/* commit: set of replicas */
	uint8_t outcome[GROUPS], state[GROUPS];
};

struct world {
	struct w_node node[NODES];
	struct w_group group[GROUPS];
	struct w_update update;
	struct w_worker worker[GROUPS][MEMBERS];
	struct w_trainer trainer;
	/* the connection: the lead's member, the joiner's link, and what is under way */
	uint8_t member_state, member_rank, member_there, linked, joined;
	struct w_letter to_node[LETTERS], to_lead[LETTERS];
	uint8_t next_serial, next_serial_1; /* the joiner's own are for catching up alone */
	uint8_t content_of[8];		    /* by the update's serial */
	uint8_t sent_serial;		    /* the root has sent every bucket of that update */
	uint8_t decided, decided_version;   /* content of the last commit */
	uint8_t prepared;		    /* set of groups that said so in the last update */
	uint8_t faults, updates;	    /* left */
};

enum act_kind {
	ACT_NONE,
	/* nobody's fault */
	ACT_LETTER_TO_NODE,
	ACT_LETTER_TO_LEAD,
	ACT_WORD,
	ACT_READY_HIT,
	ACT_STREAM_DONE,
	ACT_JOB_BEGIN,
	ACT_JOB_READ,
	ACT_JOB_NOTED,
	ACT_JOB_DONE,
	ACT_JOB_FAIL,
	ACT_EPOCH,
	ACT_CONNECT,
	ACT_WORKER_START,
	ACT_REGISTER,
	ACT_READY,
	ACT_RESUME,
	ACT_TRAINER_START,
	ACT_PUBLISH,
	ACT_BROKER_START,
	ACT_LEAD_TIMER,
	ACT_NODE_TIMER,
	ACT_CATCH_TIMER,
	/* faults */
	ACT_WORKER_DIES,
	ACT_WITHDRAW,
	ACT_UNFIT,
	ACT_EARLY_RESUME,
	ACT_TRAINER_DIES,
	ACT_BROKER_DIES,
	ACT_CUT,
	ACT_LEAD_DROPS,
	ACT_NODE_DROPS,
	ACT_LEAD_LATE,
	ACT_NODE_LATE,
	ACT_CATCH_LATE,
	ACT_JOB_BREAKS,
	ACT_PLAN_UNFIT,
	ACT_KINDS,
};

struct act {
	uint8_t kind, a, b;
};

#define ACTS 96u

/* Everything stands, nothing was ever published. */
void world_init(struct world *ret_world);

/* What may happen now; faults are left out when none is left. Returns how many. */
unsigned world_acts(const struct world *world, struct act ret_acts[ACTS]);

/* One of them happens. `live`: the machines hold this world already. A sentence: the violation
 * that was seen on the way. */
const char *world_act(struct world *world, struct act act, bool live);

/* What holds in every state, and in those where nothing more happens by itself. NULL: it does. */
const char *world_check(const struct world *world);
const char *world_check_end(const struct world *world);

/* In words, for a trace. */
void act_say(struct act act, const struct world *before, char *buf, size_t size);
void world_say(const struct world *world, char *buf, size_t size);

/* live.c: the real machines */
struct live {
	struct server server;
	struct client clients[GROUPS][MEMBERS], trainer;
	struct member member;
	struct model model;
	struct publication publication;
	uint64_t broker_id;
};

extern struct live live[NODES];
extern struct world *now;     /* the world that an act works on */
extern const char *violation; /* the first that was seen while it happens */

void live_load(const struct world *world);
void live_save(struct world *world);
struct team *live_team(unsigned group); /* NULL: it is not there */
unsigned live_node(const struct server *server);
void live_catch_late(struct server *server); /* catchup_look() when its deadlines have passed */

/* surround.c: what the act kinds share */
void say_violation(const char *text);
void post(struct w_letter letters[LETTERS], const struct w_letter *letter);
void tell(struct w_worker *worker, enum word_kind kind, uint8_t update);
struct w_job *job_add(unsigned node, enum job_kind kind);
void job_note_call(unsigned node);
void job_done_call(unsigned node, struct w_job *ended);
void worker_hears(unsigned group, unsigned member, const struct message *message);
void member_drop(struct server *server);

#endif
