/*
 * explore: drives the broker's real state machines (group.c, update.c, session.c, and node.c,
 * node_teams.c, node_jobs.c, roots.c, groups.c, lead.c, parts.c, models.c, ranks.c, members.c,
 * recall.c, settle.c, catchup.c around them) through every order of messages, losses, crashes and
 * stops. Without arguments: every topology but the widest two, one fault, one update of everything,
 * nobody pulls.
 */
#include "base/util.h"
#include "tests/explore/explore.h"
#include "tests/explore/mutate.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIVE STREW_GATE_LIVE
#define HELD STREW_GATE_HELD
#define DIRECT STREW_APPLY_DIRECT
#define STAGED STREW_APPLY_STAGED

/* The trainer's one rank is at the lead (0) if nothing else is said. */
static const struct named {
	const char *name;
	struct config config;
} topologies[] = {
	{"one", {.nodes = 1, .ngroups = 1, .members = {1}}},
	{"pair", {.nodes = 1, .ngroups = 1, .members = {2}}},
	{"remote", {.nodes = 2, .ngroups = 1, .node_of = {1}, .members = {1}}},
	{"parts", {.nodes = 2, .ngroups = 2, .node_of = {0, 1}, .members = {1, 1}}},
	{"replicas", {.nodes = 2,
			     .ngroups = 2,
			     .node_of = {0, 1},
			     .replica = {0, 1},
			     .members = {1, 1}}},
	{"together", {.nodes = 2,
			     .ngroups = 2,
			     .node_of = {1, 1},
			     .replica = {0, 1},
			     .members = {1, 1}}},
	{"siblings", {.nodes = 1, .ngroups = 2, .replica = {0, 1}, .members = {1, 2}}},
	{"far", {.nodes = 2, .ngroups = 1, .members = {1}, .rank_node = {1}}},
	{"ranks", {.nodes = 2, .ngroups = 1, .members = {1}, .nranks = 2, .rank_node = {0, 1}}},
	{"both", {.nodes = 1, .ngroups = 1, .members = {1}, .nranks = 2}},
	{"sharded", {.nodes = 2,
			    .ngroups = 2,
			    .node_of = {0, 1},
			    .replica = {0, 1},
			    .members = {1, 1},
			    .nranks = 2,
			    .rank_node = {0, 1}}},
	{"wide", {.nodes = 2, .ngroups = 2, .node_of = {0, 1}, .members = {2, 2}}},
};

static void help(void)
{
	puts("explore [--topology NAME,...] [--gate live|held|mixed] [--apply "
	     "direct|staged|mixed]\n"
	     "        [--publish whole|subset|parts|any] [--pull none|all|mixed] [--scope "
	     "any|all]\n"
	     "        [--faults N] [--updates N] [--states N] [--walks N]\n"
	     "        [--mutate NAME] [--keep-going]\n"
	     "explore --prove\n"
	     "Explores what may happen in one of these topologies, or in all but the widest two:");
	for (size_t t = 0; t < ARRAY_LEN(topologies); t++) {
		const struct config *of = &topologies[t].config;

		printf("  %-9s %u nodes, %u groups, %u trainer ranks\n", topologies[t].name,
			of->nodes, of->ngroups, of->nranks ? of->nranks : 1);
	}
	puts("Exit 0: no violation. 1: one, told step by step. --prove: each fault that mutate.c "
	     "can\n"
	     "put into the machine of a group must be found.");
}

struct wanted {
	const char *topology, *mutation;
	unsigned gates, applies, scopes; /* sets: 1, 2, 4 for mixed */
	unsigned publish;		 /* set of publish kinds */
	unsigned pull;			 /* set of members, in each group */
	unsigned faults, updates, walks;
	size_t states;
	bool keep_going, quiet;
};

static void set_gates(unsigned gate, unsigned apply)
{
	for (unsigned g = 0; g < GROUPS; g++) {
		config.gate[g] = gate == 2 ? (g ? HELD : LIVE) : gate ? HELD : LIVE;
		config.apply[g] = apply == 2 ? (g ? STAGED : DIRECT) : apply ? STAGED : DIRECT;
	}
}

static void set_pulls(unsigned members)
{
	for (unsigned g = 0; g < config.ngroups; g++) {
		config.pulls[g] = (uint8_t)(members & ((1u << config.members[g]) - 1));
	}
}

static const char *const gate_names[] = {"live", "held", "mixed"};
static const char *const apply_names[] = {"direct", "staged", "mixed"};

static int run_one(const struct wanted *wanted, const char *name, unsigned gate, unsigned apply,
	struct exploration *sum)
{
	struct exploration found;

	explore(wanted->states, !wanted->quiet, &found);
	printf("%-9s gate %-6s apply %-6s scope %-3s faults %u updates %u: %9zu states, "
	       "%9zu transitions, %6zu ends, depth %3u, %6.2f s%s%s\n",
		name, gate_names[gate], apply_names[apply], config.scope_all ? "all" : "any",
		config.faults, config.updates, found.states, found.transitions, found.ends,
		found.depth, found.seconds, found.cut ? ", not all" : "",
		found.wrong ? ", VIOLATION" : "");
	fflush(stdout);
	sum->states += found.states;
	sum->seconds += found.seconds;
	sum->depth = found.depth > sum->depth ? found.depth : sum->depth;
	for (unsigned i = 0; i < wanted->walks && !found.wrong; i++) {
		found.wrong = explore_walk(400, i);
		if (found.wrong) {
			printf("walk %u: %s\n", i, found.wrong);
		}
	}
	return found.wrong != NULL;
}

static bool is_wanted(const struct wanted *wanted, const char *name)
{
	if (!wanted->topology) {
		return strcmp(name, "wide") != 0 && strcmp(name, "sharded") != 0;
	}
	for (const char *at = wanted->topology; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (strncmp(at, name, strlen(name)) == 0 &&
			(at[strlen(name)] == ',' || !at[strlen(name)])) {
			return true;
		}
	}
	return false;
}

static int run_all(const struct wanted *wanted)
{
	struct exploration sum = {0};
	int wrong = 0;

	for (size_t t = 0; t < ARRAY_LEN(topologies); t++) {
		if (!is_wanted(wanted, topologies[t].name)) {
			continue;
		}
		for (unsigned bits = 0; bits < 18; bits++) {
			unsigned gate = bits % 3, apply = bits / 3 % 3, scope = bits / 9;

			if (!(wanted->gates & (1u << gate)) || !(wanted->applies & (1u << apply)) ||
				!(wanted->scopes & (1u << scope))) {
				continue;
			}
			config = topologies[t].config;
			config.scope_all = scope;
			config.faults = wanted->faults;
			config.updates = wanted->updates;
			config.mutation = wanted->mutation;
			config.publish = wanted->publish;
			config.nranks = config.nranks ? config.nranks : 1;
			set_gates(gate, apply);
			set_pulls(wanted->pull);
			wrong |= run_one(wanted, topologies[t].name, gate, apply, &sum);
			if (wrong && !wanted->keep_going) {
				return 1;
			}
		}
	}
	printf("%zu states, depth %u, %.1f s\n", sum.states, sum.depth, sum.seconds);
	return wrong;
}

/* Each of the known-bad machines is found out. */
static int prove(void)
{
	struct wanted wanted = {
		.gates = 3, .applies = 3, .scopes = 1, .states = 2000000, .quiet = true};
	int unseen = 0;

	for (const struct mutation *at = mutations; at->name; at++) {
		wanted.mutation = at->name;
		wanted.topology = at->topology;
		wanted.publish = 1u << at->publish | 1u << PUBLISH_WHOLE;
		wanted.pull = at->pull;
		wanted.faults = at->faults;
		wanted.updates = at->updates ? at->updates : at->publish == PUBLISH_FIRST ? 2 : 1;
		printf("%s:\n", at->name);
		if (run_all(&wanted) == 0) {
			printf("NOT FOUND\n");
			unseen = 1;
		}
	}
	return unseen;
}

static unsigned choose(const char *word, const char *const names[], unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (strcmp(word, names[i]) == 0) {
			return 1u << i;
		}
	}
	fprintf(stderr, "explore: what is %s?\n", word);
	exit(2);
}

int main(int argc, char **argv)
{
	static const char *const scope_names[] = {"any", "all"};
	static const char *const publish_names[] = {"whole", "subset", "parts", "any"};
	static const unsigned publishes[] = {1u << PUBLISH_WHOLE, 1u << PUBLISH_FIRST,
		1u << PUBLISH_IN_PARTS, (1u << PUBLISH_KINDS) - 1};
	static const char *const pull_names[] = {"none", "mixed", "?", "all"};
	static const struct option options[] = {{"topology", 1, NULL, 't'}, {"gate", 1, NULL, 'g'},
		{"apply", 1, NULL, 'a'}, {"scope", 1, NULL, 's'}, {"faults", 1, NULL, 'f'},
		{"updates", 1, NULL, 'u'}, {"publish", 1, NULL, 'b'}, {"pull", 1, NULL, 'l'},
		{"states", 1, NULL, 'n'}, {"mutate", 1, NULL, 'm'}, {"walks", 1, NULL, 'w'},
		{"keep-going", 0, NULL, 'k'}, {"prove", 0, NULL, 'p'}, {"help", 0, NULL, 'h'},
		{NULL, 0, NULL, 0}};
	struct wanted wanted = {.gates = 3,
		.applies = 3,
		.scopes = 3,
		.publish = 1u << PUBLISH_WHOLE,
		.faults = 1,
		.updates = 1,
		.states = 2000000};
	int option;

	while ((option = getopt_long(argc, argv, "", options, NULL)) >= 0) {
		switch (option) {
		case 't':
			wanted.topology = optarg;
			break;
		case 'g':
			wanted.gates = choose(optarg, gate_names, 3);
			break;
		case 'a':
			wanted.applies = choose(optarg, apply_names, 3);
			break;
		case 's':
			wanted.scopes = choose(optarg, scope_names, 2);
			break;
		case 'f':
			wanted.faults = (unsigned)atoi(optarg);
			break;
		case 'u':
			wanted.updates = (unsigned)atoi(optarg);
			break;
		case 'b':
			wanted.publish = publishes[__builtin_ctz(choose(optarg, publish_names, 4))];
			break;
		case 'l':
			wanted.pull = (unsigned)__builtin_ctz(choose(optarg, pull_names, 4));
			break;
		case 'n':
			wanted.states = strtoull(optarg, NULL, 10);
			break;
		case 'm':
			wanted.mutation = optarg;
			break;
		case 'w':
			wanted.walks = (unsigned)atoi(optarg);
			break;
		case 'k':
			wanted.keep_going = true;
			break;
		case 'p':
			return prove();
		case 'h':
			help();
			return 0;
		default:
			return 2;
		}
	}
	return run_all(&wanted);
}
