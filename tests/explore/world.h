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
#define RANKS 2u
#define JOBS 8u	    /* of a mover */
#define LETTERS 10u /* of a connection, each way */
#define WORDS 8u    /* of a worker to its broker */
#define INBOX 4u    /* what a worker hears while it copies out of its twins */

/*
 * The model has two tensors, its halves: subset n, and part n, is half n - 1. A worker's memory
 * has a cell for each half that its broker writes, and behind them one for each that it copies
 * out of a twin itself.
 */
#define HALVES 2u
#define CELLS 4u
#define ALL_HALVES 3u
#define SERIALS 16u /* of updates, and of catching up, that somebody remembers */

enum publish_kind { PUBLISH_WHOLE, PUBLISH_FIRST, PUBLISH_SECOND, PUBLISH_IN_PARTS, PUBLISH_KINDS };

/* What is explored, and how far. */
struct config {
	unsigned nodes;		 /* 1: the lead alone; 2 */
	unsigned ngroups;	 /* 1 or 2 */
	uint8_t node_of[GROUPS]; /* each group's node */
	uint8_t replica[GROUPS]; /* its replica; the part is its number */
	uint8_t members[GROUPS];
	enum strew_gate gate[GROUPS];
	enum strew_apply apply[GROUPS];
	uint8_t pulls[GROUPS]; /* set of members that pull */
	uint8_t nranks;
	uint8_t rank_node[RANKS];
	unsigned publish; /* set of publish kinds */
	bool scope_all;
	unsigned faults, updates;
	const char *mutation; /* NULL: the product as it is */
};

extern struct config config;

/* struct catching; crews are those of its group and of the other one of its node, or have changed.
 */
struct w_catching {
	uint8_t alone, alone_at, following, stage, stopping, running, version, waits;
	uint8_t same_from, same_to, tried;
	uint8_t lump, more, failed; /* of its last job */
};

/* Memory's content: the number of the publish that it came from; 0 is what engines start with. */
struct w_group {
	uint8_t exists, phase, state, version, update, update_version, has_text, npresent;
	uint8_t taking_part, said, outcome, placed, copied;
	uint8_t doubt, doubt_prepared, doubt_current, settling;
	struct {
		uint8_t present, checked, ready, asking, stale, version, doubt, pulls, pulled;
	} member[MEMBERS];
	struct w_catching catching;
};

/* struct recall; brokers are told apart by how often each has started. */
struct w_recall {
	uint8_t update, version, how, replicas, own, lead, node;
};

enum job_kind {
	JOB_NONE,
	JOB_IMPORT,
	JOB_PLAN,
	JOB_MOVE,
	JOB_COMMIT,
	JOB_RELEASE,
	JOB_EPOCH,
	JOB_SETTLE,
	JOB_CATCH,
	JOB_KINDS
};
enum job_progress { JOB_QUEUED, JOB_BEGUN, JOB_READ };

struct w_job {
	uint8_t kind, progress, failed;
	uint8_t workers; /* set: whose memory it works on */
	uint8_t errors; /* plan: set of groups that it found not to fit; settle, catch: the group */
	uint8_t wire;	/* move */
	uint8_t part;	/* move: of the update, 0: all of it; catch: the half that it copies */
	uint8_t note_due; /* move: released is not told yet */
	uint8_t serial;	  /* the update's, or the epoch's number */
	uint8_t gone; /* import, epoch, settle: nobody waits for it; move: ranks that died since */
	uint8_t step, from, content[HALVES]; /* catch: from whose memory, and what that holds */
};

struct w_node {
	uint8_t alive;
	uint8_t stage, epoch, serial, version, wire, deadline, teams, going, absent;
	uint8_t parts, part, moving, subset, base;
	uint8_t absent_state[GROUPS];
	uint8_t job_running, touched, has_publication, cancel;
	uint8_t knows, doubted, committed,
		announced; /* of the model: version; is there a publication? */
	uint8_t leaving;   /* of the model: the undeclare that waits for its answer */
	uint8_t epoch_state, epoch_number, epoch_ranks;
	uint8_t crew_dead, crew_freed; /* workers of the update's crews that died, were unmapped */
	uint8_t ranks_dead;	       /* of the update: their memory is read all the same */
	uint8_t excused;	       /* was not there when the last decision was taken */
	uint8_t born;		       /* how many brokers were here before */
	uint8_t epoch_lead;	       /* `born` of that epoch's lead */
	/* struct remembered: of which publication, and may it have to be committed? */
	struct w_recall recall;
	/* A begin that waits until copies of a group that catches up, or the last update, have
	 * ended. */
	uint8_t begin_waits, begin_epoch, begin_serial, begin_version, begin_parts, begin_subset,
		begin_base;
	uint8_t recall_subset, recall_base, recall_partial, has_recalled;
	struct w_job jobs[JOBS];
};

struct w_update {
	uint8_t state, serial, version, published, done, released, nnodes, answered, lost, outcome;
	uint8_t has_text, active, replicas, known;
	uint8_t parts, part, put, next_said, next, subset, base;
	struct {
		uint8_t outcome, state, has_text;
	} group[GROUPS];
};

enum worker_stage { W_DEAD, W_NEW, W_IMPORTING, W_LIVE, W_LEAVING };
enum word_kind {
	WORD_NONE,
	WORD_CHECKED,
	WORD_UNFIT,
	WORD_PULLED,
	WORD_NOT_PULLED,
	WORD_IS_READY,
	WORD_RESUME,
	WORD_WITHDRAW,
	WORD_EOF
};

enum applying { APPLY_NONE, APPLY_TOLD, APPLY_BEGUN };

struct w_heard {
	uint8_t type, update, state, version, outcome;
};

struct w_worker {
	uint8_t stage;
	uint8_t content[CELLS], todo; /* of live memory; todo: cells that are not whole */
	uint8_t touched;	      /* the update that has begun to write it, else 0 */
	uint8_t shadow[CELLS], whole; /* of staged memory and of twins; whole: cells */
	uint8_t fresh;		      /* a new process whose memory no update has reached */
	uint8_t running;	      /* the engine uses its memory; false: it stands */
	uint8_t said_ready, asked, denied, hold; /* between engine and broker */
	uint8_t pending, heard_state, heard_version;
	uint8_t pending_update, heard_update, holds;		   /* as the agent keeps them */
	uint8_t said_state, said_version, said_update, said_holds; /* when it registered */
	uint8_t written;					   /* on the page of its broker */
	uint8_t session; /* enum session_state of the broker's client, 0: none */
	uint8_t watched; /* the broker waits for its ready word */
	uint8_t applying, apply_update, apply_cells; /* what it copies out of its twins … */
	struct w_heard inbox[INBOX];		     /* … and hears of when it has */
	struct {
		uint8_t kind, update;
	} words[WORDS];
};

/* What a trainer rank has asked its broker, and waits to hear. */
enum rank_asked { ASKED_NOTHING, ASKED_PUBLISH, ASKED_PUT, ASKED_WRONGLY };

/* A trainer rank; behind it what its broker knows of it, and the lead of a rank elsewhere. */
struct w_rank {
	uint8_t seated, round;			   /* that it has published, or was not there for */
	uint8_t publishing, version, puts, memory; /* memory: the half in it, 0: all of them */
	uint8_t lent, asked, gave_up, streaming;
	struct {
		uint8_t declared, answered;
		uint8_t declare, publish, put; /* serials of requests to the lead */
		uint8_t version, taken, lent, committed, abandoned, prepared;
	} told;
	struct {
		uint8_t there, ready, answered, declare, publish;
	} seat;
};

enum letter_kind {
	LETTER_NONE,
	LETTER_JOIN,
	LETTER_JOINED,
	LETTER_MANIFEST,
	LETTER_UNDECLARED,
	LETTER_EPOCH,
	LETTER_EPOCH_READY,
	LETTER_BEGIN,
	LETTER_GO,
	LETTER_COMMIT,
	LETTER_ABORT,
	LETTER_ACCEPT,
	LETTER_MOVED,
	LETTER_PREPARED,
	LETTER_APPLIED,
	LETTER_RECALL,
	LETTER_SETTLED,
	/* of trainer ranks */
	LETTER_DECLARE,
	LETTER_UNDECLARE,
	LETTER_RANK_PUBLISH,
	LETTER_RANK_PUT,
	LETTER_RANK_DONE,
	LETTER_DECLARED,
	LETTER_OK,
	LETTER_ERROR,
	LETTER_REPORT,
	LETTER_EOF,
	LETTER_KINDS
};

struct w_letter {
	uint8_t kind, epoch, update, version, code, wire;
	uint8_t parts, part, subset, base, serial, rank, released;
	uint8_t groups; /* decisions: set of replicas; answers: set of groups */
	uint8_t outcome[GROUPS], state[GROUPS];
	uint8_t met[GROUPS], own; /* go: groups of each replica, and the set of the lead's */
	struct w_recall recall;	  /* recall and settled; epoch: who is the lead */
};

/* What was decided: the contents by it and by the decision before, and whom it did not reach. */
struct w_decision {
	uint8_t content[HALVES], version;
	uint8_t before[HALVES];
	uint8_t excused; /* set of nodes */
};

struct world {
	struct w_node node[NODES];
	struct w_group group[GROUPS];
	struct w_update update;
	struct w_worker worker[GROUPS][MEMBERS];
	struct w_rank rank[RANKS];
	/* the connection: the lead's member, the joiner's link, and what is under way */
	uint8_t member_state, member_rank, member_there, member_born, linked, joined, link_serial;
	struct w_recall member_recall; /* what the lead knows of node 1 */
	struct w_letter to_node[LETTERS], to_lead[LETTERS];
	uint8_t next_serial, node_serial; /* the lead's; node 1's, of catching up alone */
	/* What the ranks publish: content's number, 0: nothing yet; the same at all of them. */
	uint8_t round, round_kind, round_version, round_base;
	uint8_t content_of[SERIALS], halves_of[SERIALS]; /* by the update's serial */
	uint8_t sent_serial[NODES], sent_part[NODES];	 /* roots: their last bucket is sent */
	uint8_t decided[HALVES], decided_version;	 /* contents by the last commit … */
	uint8_t before[HALVES];				 /* … and by the one before it */
	/* How it was before, and whose commit it was, while that can still turn out to be none. */
	struct w_decision undo;
	uint8_t decided_serial, decided_lead;
	uint8_t reported;	 /* content of the last commit that the trainer was told of */
	uint8_t prepared;	 /* set of groups that said so in the last update */
	uint8_t faults, updates; /* left */
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
	ACT_PULL,
	ACT_PULLED,
	ACT_TRAINER_START,
	ACT_PUBLISH,
	ACT_FOLLOW,
	ACT_PUT,
	ACT_BROKER_START,
	ACT_LEAD_TIMER,
	ACT_NODE_TIMER,
	ACT_CATCH_TIMER,
	/* faults */
	ACT_WORKER_DIES,
	ACT_WITHDRAW,
	ACT_UNFIT,
	ACT_EARLY_RESUME,
	ACT_PULL_FAILS,
	ACT_TRAINER_DIES,
	ACT_PUT_AGAIN,
	ACT_CLOSE_EARLY,
	ACT_PUT_LATE,
	ACT_WRONG_BASE,
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

/* A team's key between acts; another one says that it has changed in this one. */
#define TEAM_KEY(group) ((group) + 1u)
#define FIRST_KEY 100u

struct live {
	struct server server;
	struct client clients[GROUPS][MEMBERS];
	uint64_t words[GROUPS][MEMBERS][WORD_WRITTEN + 1]; /* of its pages */
	struct member member;
	struct model model;
	struct publication publication, half[HALVES];
	struct subset subset[HALVES];
	uint64_t brokers[RANKS];
	uint32_t roots[RANKS];
	struct holder *holders[RANKS];
};

extern struct live live[NODES];
extern struct client ranks[RANKS];
extern struct world *now;     /* the world that an act works on */
extern const char *violation; /* the first that was seen while it happens */

void live_load(const struct world *world);
void live_save(struct world *world);
struct team *live_team(unsigned group); /* NULL: it is not there */
unsigned live_node(const struct server *server);
void live_catch_late(struct server *server); /* catchup_look() when its deadlines have passed */
/* Those of the trainer ranks; to the lead that of node 1 is the one that has joined. */
void live_name_brokers(const struct world *world, unsigned node);

/* recalls.c: what is recalled of an update when its lead is lost, and settled by the next */
uint64_t broker_of(unsigned node, unsigned born);
void load_recalls(struct live *at, const struct world *world, unsigned node);
void save_recalls(struct world *world, unsigned node);
struct w_letter recall_letter(const struct msg_recall *said);
struct w_letter settled_letter(const struct msg_settled *said);
void lead_hears_recall(const struct w_recall *packed);
void node_hears_settled(const struct w_recall *packed);
void settle_submit(struct job_settle *job);
void settle_done_call(unsigned node, const struct w_job *ended);

uint8_t members_of(unsigned group); /* as a set of workers */

/* catches.c: groups that catch up */
void load_catching(const struct world *world, unsigned group, struct team *team);
void save_catching(struct world *world, unsigned group);
/* By the keys that teams have between acts. */
void name_crews(const struct world *world, unsigned group, struct team *team);
bool catch_waits(const struct world *world, unsigned node);
void catch_submit(struct job_catch *work);
void catch_done_call(const struct w_job *ended);
void catch_writes(const struct w_job *job, bool whole);
const char *check_catching(const struct world *world);
const char *check_caught(const struct world *world); /* when nothing more happens */

/* letters.c: the connection between the brokers */
void post(struct w_letter letters[LETTERS], const struct w_letter *letter);
void letter_arrives(bool at_lead);
void member_drop(struct server *server);
void link_down(void);

/* ranks.c's and lead.c's clients: trainers.c */
void act_of_rank(struct act act);
void rank_hears(unsigned rank, const struct message *message);
void rank_answered(unsigned rank, int code);
void rank_loses_broker(unsigned rank);
bool rank_may_start(const struct world *world, unsigned rank);
bool rank_may_follow(const struct world *world, unsigned rank);
bool rank_may_put(const struct world *world, unsigned rank);
uint8_t round_halves(uint8_t kind);
bool node_has_rank(unsigned node);

/* memory.c: what is written where */
struct w_write {
	uint8_t serial, brings; /* of the update: its halves */
	uint8_t content[HALVES];
};
/* Some cells of live memory, of all those that the update brings. */
void write_live(
	unsigned group, unsigned member, const struct w_write *write, uint8_t cells, bool whole);
uint8_t cells_of(unsigned group, unsigned member, uint8_t halves);
void job_reads(const struct w_job *job, unsigned node);
void job_writes(const struct w_job *job, bool whole);
void worker_writes(unsigned group, unsigned member, bool whole); /* out of its twins */

/* surround.c: what the act kinds share */
void say_violation(const char *text);
_Noreturn void too_small(const char *what);
void tell(struct w_worker *worker, enum word_kind kind, uint8_t update);
struct w_job *job_add(unsigned node, enum job_kind kind);
void job_note_call(unsigned node);
void job_done_call(unsigned node, struct w_job *ended);
void worker_hears(unsigned group, unsigned member, const struct message *message);
/* What came while it was copying out of its twins. */
void worker_reads_on(unsigned group, unsigned member);
/* What its agent takes the memory for when nobody tells it any more. */
uint8_t worker_belief(unsigned group, const struct w_worker *worker);
void worker_loses_broker(unsigned group, unsigned member);
void worker_unmapped(struct w_worker *worker); /* that of a process that is gone */
/* decide.c */
void note_begin(uint8_t serial); /* of an update */
/* If a commit was decided in this act: from now on its content is what groups should hold. */
void note_decision(uint8_t committed_before, const struct w_update *before, uint8_t version);
/* If its lead is gone and nobody has begun to carry it out, or will hear of it: then it was none.
 */
void forget_decision(void);

/* acts.c's parts */
void act_of_broker(struct act act);

#endif
