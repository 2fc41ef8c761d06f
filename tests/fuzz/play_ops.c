/*
 * What an input can do. Every op is a byte, and takes its arguments from behind it. Numbers of ends
 * and of kinds are taken modulo what there is, so that nearly every input does something.
 */
#include "base/util.h"
#include "fuzz/play.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define OPS_MAX 96 /* of one input */

/* What mutated fields may be given. */
static void know(const struct end *end)
{
	const struct server *server = play.server;
	const struct model *model = server->models;
	const struct client *client = server->clients;
	uint64_t *known = says_known;

	memset(says_known, 0, sizeof(says_known));
	*known++ = server->epoch.number;
	*known++ = server->node.serial;
	*known++ = server->node.version;
	*known++ = server->active ? server->active->update.serial : server->next_serial;
	*known++ = server->broker_id;
	*known++ = model && model->publication ? model->publication->hash : 0;
	*known++ = model ? model->leaving_serial : 0;
	*known++ = model ? model->update.version : 0;
	*known++ = server->epoch.slot_bytes;
	*known++ = end ? end->serial : 0;
	*known++ = end ? end->word : 0;
	*known++ = PLAY_MEMORY;
	while (client && !client->told.declare_serial) {
		client = client->next;
	}
	*known++ = client ? client->told.declare_serial : 0;
	*known++ = client ? client->told.publish_serial : 0;
	*known++ = 100 + (uint64_t)(end ? end - play.ends : 0);
	*known++ = server->lead.pending.epoch;
	CLAIM(known == says_known + SAYS_KNOWN);
}

/* The end of that number among those of the kind; NULL if there is none. */
static struct end *choose(struct input *input, enum end_kind kind)
{
	struct end *found[ENDS];
	unsigned n = 0;
	uint8_t which = input_byte(input);

	for (unsigned i = 0; i < ENDS; i++) {
		if (kind == END_NONE ? play.ends[i].kind != END_NONE : play.ends[i].kind == kind) {
			found[n++] = &play.ends[i];
		}
	}
	return n ? found[which % n] : NULL;
}

void play_script(struct input *input, play_op *const *ops, size_t nops)
{
	for (unsigned i = 0; i < OPS_MAX && input->left && !play.server->stop; i++) {
		know(NULL);
		ops[input_below(input, (uint32_t)nops)](input);
	}
}

void op_turn(struct input *input)
{
	play_turn(1 + input_below(input, 6));
}

void op_time(struct input *input)
{
	static const uint32_t spans_ms[] = {1, 60, 110, 1000, 5100, 10000, 31000, 61000};

	time_pass(spans_ms[input_below(input, ARRAY_LEN(spans_ms))]);
	play_turn(1);
}

/* Holds it, lets it go, or lets it do some of what waits. */
void op_mover(struct input *input)
{
	uint8_t what = input_byte(input);

	play.held = what & 1;
	if (what > 1) {
		mover_run(play.server->mover, what >> 1);
	}
}

void op_close(struct input *input)
{
	struct end *end = choose(input, END_NONE);

	if (end) {
		end_close(end);
	}
}

void op_raw(struct input *input)
{
	struct end *end = choose(input, END_NONE);
	size_t n;
	const uint8_t *bytes = input_bytes(input, UINT8_MAX, &n);

	if (end) {
		end_send_bytes(end, bytes, n, NULL, 0);
	}
}

void op_cut(struct input *input)
{
	struct end *end = choose(input, END_NONE);

	if (end) {
		end->cut = input_byte(input);
	}
}

void op_mode(struct input *input)
{
	struct end *end = choose(input, END_NONE);
	uint8_t mode = input_byte(input);

	if (end) {
		end->automatic = mode & 1;
		end->mute = mode & 2;
	}
}

void op_client(struct input *input)
{
	struct end *end = client_connect();
	uint8_t how = input_byte(input);

	if (end) {
		end->automatic = how & 4;
		if (how % 4) {
			client_hello(end, (enum role)(how % 4));
		}
	}
}

/* A blob with some bytes replaced. */
static void spoil(struct input *input, unsigned which, struct blob *ret_blob)
{
	const struct blob *good = play_blob(which);
	unsigned n = input_below(input, 4);

	memset(ret_blob, 0, sizeof(*ret_blob));
	ret_blob->bytes = malloc(good->len);
	CLAIM(ret_blob->bytes);
	memcpy(ret_blob->bytes, good->bytes, good->len);
	ret_blob->len = good->len;
	for (unsigned i = 0; i < n; i++) {
		size_t at = input_u16(input) % good->len;

		ret_blob->bytes[at] = input_byte(input);
	}
}

void op_register(struct input *input)
{
	struct end *end = choose(input, END_CLIENT);
	uint8_t how = input_byte(input);
	struct msg_register reg = {.model = MODEL,
		.gate = how & 1 ? STREW_GATE_HELD : STREW_GATE_LIVE,
		.apply = how & 2 ? STREW_APPLY_STAGED : STREW_APPLY_DIRECT,
		.replica = how >> 2 & 1,
		.part = how >> 3 & 1,
		.member = how >> 4 & 1,
		.members = 1 + (how >> 5 & 1)};
	struct blob blob;

	spoil(input, SAID_LAYOUT + input_below(input, 3), &blob);
	if (end) {
		client_register(end, reg, &blob);
	}
	blob_finish(&blob);
}

void op_declare(struct input *input)
{
	struct end *end = choose(input, END_CLIENT);
	uint32_t which = input_below(input, 3);
	struct msg_trainer trainer = {
		.model = MODEL, .ranks = which ? 2 : 1, .rank = which == 2 ? 1 : 0};
	struct blob blob;

	spoil(input, SAID_WHOLE + which, &blob);
	if (end) {
		client_declare(end, trainer, &blob);
	}
	blob_finish(&blob);
}

/* A version below 128; or something about parts: what, and which subset. */
void op_publish(struct input *input)
{
	struct end *end = choose(input, END_CLIENT);
	uint8_t what = input_byte(input);
	uint32_t subset = what % 8;

	if (!end) {
		return;
	}
	if (what < 128) {
		client_publish(end, what);
		return;
	}
	switch (what / 8 % 4) {
	case 0:
		client_subset(end, subset, input_byte(input));
		break;
	case 1:
		client_open_parts(end, input_byte(input), subset);
		break;
	case 2:
		client_put(end, subset);
		break;
	default:
		client_cancel(end);
	}
}

void op_word(struct input *input)
{
	struct end *end = choose(input, END_CLIENT);
	unsigned word = input_below(input, 5);
	uint64_t value = says_number(input);

	if (end && end->page.words) {
		page_store(&end->page, word, value);
	}
}

/* What a lead, or a rank at a member, says of an update in parts. */
static void fill_part(struct message *message, uint32_t subset)
{
	static const uint8_t tensors[] = {1, 2, 4, 7};
	const struct model *model = play.server->models;
	uint64_t version = model ? model->update.version : 0;

	if (message->type == MSG_CHOSEN) {
		(void)lead_fill_chosen(message, MODEL, 1 + subset, &tensors[subset], 1);
	} else if (message->type == MSG_BEGIN) {
		message->u.begin.flags = PUBLISH_PARTS;
		message->u.begin.version = model ? model->committed + 1 : 1;
		message->u.begin.timeout_ms = 20000;
	} else if (message->type == MSG_GO) {
		message->u.decision.part = subset;
		message->u.decision.wire = 1;
		message->u.decision.replicas = calloc(1, sizeof(*message->u.decision.replicas));
		CLAIM(message->u.decision.replicas);
		message->u.decision.nreplicas = 1;
	}

	if (message->type == MSG_RANK_SUBSET) {
		message->u.rank_subset.subset = 1 + subset;
		message->u.rank_subset.tensors = &tensors[subset];
		message->u.rank_subset.ntensors = 1;
	} else if (message->type == MSG_RANK_PUBLISH) {
		message->u.rank_publish.version = model ? model->committed + 1 : 1;
		message->u.rank_publish.flags = PUBLISH_PARTS;
		message->u.rank_publish.subset = 1 + subset;
	} else if (message->type == MSG_RANK_PUT) {
		message->u.rank_put.version = version;
		message->u.rank_put.subset = subset;
	} else if (message->type == MSG_RANK_CANCEL) {
		message->u.rank_cancel.version = version;
	} else if (message->type == MSG_RANK_DONE) {
		message->u.rank_done.version = version;
	}
}

/* Of the update that the broker was in last, by somebody who was in it. */
static void recall_of_now(struct end *end, struct message *message)
{
	struct msg_recall *recall = &message->u.recall;
	struct msg_settled *settled = &message->u.settled;

	string_copy(recall->model, LIMIT_MODEL_BYTES, MODEL);
	recall->update = play.server->node.serial;
	recall->version = play.server->node.version;
	if (message->type == MSG_SETTLED) {
		settled->how = RECALL_COMMITTED;
		settled->replicas = calloc(1, sizeof(*settled->replicas));
		settled->nreplicas = 1;
		CLAIM(settled->replicas);
		return;
	}
	recall->how = RECALL_PREPARED;
	recall->brokers = calloc(2, sizeof(*recall->brokers));
	recall->nbrokers = 2;
	CLAIM(recall->brokers);
	recall->brokers[0] = 4711;
	recall->brokers[1] = 100 + (uint64_t)(end - play.ends);
}

static void say(struct input *input, struct end *end, enum message_type type)
{
	uint8_t with = input_byte(input);
	struct message message;

	know(end);
	message_init(&message, type, with & 0x80 ? says_number(input) : ++end->serial);
	/* Messages between brokers begin as ones that mean something now. */
	if (type == MSG_BEGIN || (type >= MSG_ACCEPT && type <= MSG_MOVED)) {
		message.u.groups.epoch = play.server->epoch.number;
		message.u.groups.update =
			type == MSG_BEGIN ? end->serial : play.server->node.serial;
	}
	if (type == MSG_RECALL || type == MSG_SETTLED) {
		recall_of_now(end, &message);
	}
	if (type == MSG_BEGIN || type == MSG_MANIFEST || type == MSG_CHOSEN ||
		type == MSG_UNDECLARED || type >= MSG_DECLARE) {
		char *model = type == MSG_BEGIN	       ? message.u.begin.model
			      : type == MSG_CHOSEN     ? message.u.chosen.model
			      : type == MSG_MANIFEST   ? message.u.manifest.model
			      : type == MSG_UNDECLARED ? message.u.undeclared.model
						       : message.u.declare.model;

		string_copy(model, LIMIT_MODEL_BYTES, MODEL);
	}
	if ((end->kind == END_MEMBER || end->kind == END_LEAD) && with & 0x40) {
		fill_part(&message, with & 3);
	}
	says_change(input, &message);
	for (unsigned i = 0; i < (with & 3u) && end->kind == END_CLIENT; i++) {
		message.fds[message.nfds++] = play_fd(with >> 2 & 7);
	}
	end_send(end, &message);
}

void op_say_client(struct input *input)
{
	static const enum message_type types[] = {MSG_HELLO, MSG_REGISTER, MSG_ALLOCATION, MSG_PART,
		MSG_SEAL, MSG_WITHDRAW, MSG_CHECKED, MSG_READY, MSG_RESUME, MSG_TRAINER,
		MSG_PUBLISH, MSG_STATUS, MSG_PROGRESS, MSG_EVENTS, MSG_EXPLAIN, MSG_LAYOUT,
		MSG_READ, MSG_SUBSET, MSG_PUT, MSG_CANCEL};
	struct end *end = choose(input, END_CLIENT);
	uint8_t which = input_byte(input);

	if (end) {
		say(input, end, which < 64 ? types[which % ARRAY_LEN(types)] : says_type(which));
	}
}

void op_member(struct input *input)
{
	member_connect(input_byte(input) & 1);
}

void op_say_member(struct input *input)
{
	static const enum message_type types[] = {MSG_JOIN, MSG_EPOCH_READY, MSG_ACCEPT,
		MSG_PREPARED, MSG_APPLIED, MSG_PART, MSG_DECLARE, MSG_UNDECLARE, MSG_RANK_PUBLISH,
		MSG_RANK_DONE, MSG_BYE, MSG_DATA, MSG_RANK_SUBSET, MSG_RANK_PUT, MSG_MOVED,
		MSG_RANK_CANCEL, MSG_RECALL};
	struct end *end = choose(input, END_MEMBER);
	uint8_t which = input_byte(input);

	if (end) {
		say(input, end, which < 64 ? types[which % ARRAY_LEN(types)] : says_type(which));
	}
}

/* A trainer rank at a member: its share, and declare. */
void op_share(struct input *input)
{
	struct end *end = choose(input, END_MEMBER);
	uint32_t which = input_below(input, 3);
	struct message message;
	struct blob blob;

	spoil(input, SAID_SHARE_WHOLE + which, &blob);
	if (end) {
		blob_tell(end, &blob, PART_MANIFEST);
		message_init(&message, MSG_DECLARE, ++end->serial);
		string_copy(message.u.declare.model, LIMIT_MODEL_BYTES, MODEL);
		message.u.declare.rank = which == 2;
		message.u.declare.ranks = which ? 2 : 1;
		message.u.declare.parts = 1;
		message.u.declare.bytes = blob.len;
		message.u.declare.hash = blob_hash(&blob);
		says_change(input, &message);
		end_send(end, &message);
	}
	blob_finish(&blob);
}

void op_say_lead(struct input *input)
{
	static const enum message_type types[] = {MSG_JOINED, MSG_EPOCH, MSG_PART, MSG_MANIFEST,
		MSG_BEGIN, MSG_GO, MSG_COMMIT, MSG_ABORT, MSG_BYE, MSG_ERROR, MSG_OK, MSG_DECLARED,
		MSG_REPORT, MSG_CHOSEN, MSG_SETTLED, MSG_UNDECLARED};
	struct end *end = choose(input, END_LEAD);
	uint8_t which = input_byte(input);

	if (end) {
		say(input, end, which < 64 ? types[which % ARRAY_LEN(types)] : says_type(which));
	}
}

void op_manifest(struct input *input)
{
	struct end *end = choose(input, END_LEAD);
	uint8_t how = input_byte(input);
	bool both = how & 1;
	struct message message;
	struct blob blob;
	uint64_t *roots = calloc(2, sizeof(*roots));

	CLAIM(roots);
	spoil(input, both ? SAID_MANIFEST_BOTH : SAID_MANIFEST, &blob);
	message_init(&message, MSG_MANIFEST, 0);
	string_copy(message.u.manifest.model, LIMIT_MODEL_BYTES, MODEL);
	message.u.manifest.parts = 1;
	message.u.manifest.bytes = blob.len;
	message.u.manifest.hash = blob_hash(&blob);
	roots[0] = how & 2 ? play.server->broker_id : 4711;
	roots[1] = how & 4 ? play.server->broker_id : 4711;
	message.u.manifest.roots = roots;
	message.u.manifest.nroots = both ? 2 : 1;
	says_change(input, &message);
	if (end) {
		blob_tell(end, &blob, PART_MANIFEST);
		end_send(end, &message);
	}
	says_finish(&message);
	blob_finish(&blob);
}

void op_epoch(struct input *input)
{
	struct end *end = choose(input, END_LEAD);
	uint32_t ranks = input_below(input, 4);

	if (end) {
		lead_epoch_named(end, ranks);
	}
}

/* What a root sends: the header of a bucket, right if the input does not change it, and bytes. */
void op_bucket(struct input *input)
{
	static uint8_t bytes[LIMIT_SLOT_BYTES_MIN];
	struct end *end = choose(input, END_DATA);
	uint64_t words[3] = {play.server->epoch.number, input_byte(input), 0};
	uint32_t kind = input_below(input, 3);

	words[2] = kind == 2 ? says_number(input) : kind ? 55800 : 64968;
	memset(bytes, 1 + (int)kind, sizeof(bytes));
	if (end) {
		end_send_bytes(end, (const uint8_t *)words, sizeof(words), NULL, 0);
		if (end->kind == END_DATA) {
			end_send_bytes(end, bytes, MIN(words[2], sizeof(bytes)), NULL, 0);
		}
	}
}

void op_refuse(struct input *input)
{
	sockets_refuse(input_byte(input) & 1);
}
