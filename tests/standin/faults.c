/* Plans of faults, and counts. */
#include "tests/standin/standin.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CELLS 256
#define ENTRIES 64
#define PLAN_BYTES 4096

struct entry {
	char call[48];
	unsigned long first, last, seen;
	struct fault fault;
};

static struct standin_cell fallback[CELLS], *cells;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct {
	unsigned number;
	struct entry entries[ENTRIES];
	size_t n;
	/* of the file */
	bool from_file;
	ino_t inode;
	struct timespec changed;
} plan;

void standin_nap(unsigned us)
{
	const struct timespec nap = {us / 1000000, us % 1000000 * 1000L};

	nanosleep(&nap, NULL);
}

static void open_cells(void)
{
	const char *folder = getenv("STANDIN_DIR");
	char path[512];
	int fd;

	cells = fallback;
	if (!folder) {
		return;
	}
	snprintf(path, sizeof(path), "%s/%d.%s", folder, (int)getpid(), STANDIN_LIBRARY);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && ftruncate(fd, sizeof(fallback)) == 0) {
		void *map = mmap(NULL, sizeof(fallback), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		cells = map == MAP_FAILED ? fallback : map;
	}
	if (fd < 0 || cells == fallback) {
		fprintf(stderr, "standin: %s cannot be written\n", path);
	}
	if (fd >= 0) {
		close(fd);
	}
}

static struct standin_cell *find_cell(const char *name)
{
	size_t i = 0;

	if (!cells) {
		open_cells();
	}
	while (cells[i].name[0] && strcmp(cells[i].name, name) != 0) {
		i++;
	}
	if (i == CELLS - 1) {
		fprintf(stderr, "standin: over %d counts\n", CELLS);
		abort();
	}
	snprintf(cells[i].name, sizeof(cells[i].name), "%s", name);
	return &cells[i];
}

struct standin_cell *standin_cell(const char *name)
{
	struct standin_cell *cell;

	pthread_mutex_lock(&lock);
	cell = find_cell(name);
	pthread_mutex_unlock(&lock);
	return cell;
}

/* A plan that cannot be read must not pass for one without faults. */
static void refuse(const char *word)
{
	fprintf(stderr, "standin: %s is no fault\n", word);
	abort();
}

static void parse_what(const char *word, const char *what, struct fault *ret_fault)
{
	static const struct {
		const char *name;
		enum fault_kind kind;
		bool argument;
	} kinds[] = {
		{"fail", FAULT_FAIL, true},
		{"hang", FAULT_HANG, false},
		{"late", FAULT_LATE, true},
		{"sticky", FAULT_STICKY, true},
		{"stall", FAULT_STALL, false},
		{"async", FAULT_ASYNC, true},
		{"slow", FAULT_SLOW, true},
		{"lost", FAULT_LOST, false},
		{"flip", FAULT_FLIP, false},
	};
	size_t len = strcspn(what, ":");
	char *end = NULL;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strlen(kinds[i].name) != len || strncmp(kinds[i].name, what, len) != 0 ||
			kinds[i].argument != (what[len] == ':')) {
			continue;
		}
		ret_fault->kind = kinds[i].kind;
		if (kinds[i].argument) {
			ret_fault->argument = (unsigned)strtoul(what + len + 1, &end, 10);
			if (*end || end == what + len + 1) {
				break;
			}
		}
		return;
	}
	refuse(word);
}

static void parse_word(const char *word, struct entry *ret_entry)
{
	size_t name = strcspn(word, ":");
	char *end;

	memset(ret_entry, 0, sizeof(*ret_entry));
	if (name >= sizeof(ret_entry->call) || !word[name]) {
		refuse(word);
	}
	memcpy(ret_entry->call, word, name);
	ret_entry->first = ret_entry->last = strtoul(word + name + 1, &end, 10);
	if (*end == '+') {
		ret_entry->last = ~0ul;
		end++;
	}
	if (*end != '=' || !ret_entry->first) {
		refuse(word);
	}
	parse_what(word, end + 1, &ret_entry->fault);
	ret_entry->fault.plan = plan.number;
}

static void take_plan(const char *text)
{
	char copy[PLAN_BYTES], *save = NULL;

	snprintf(copy, sizeof(copy), "%s", text);
	plan.number++;
	plan.n = 0;
	for (char *word = strtok_r(copy, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
		if (plan.n == ENTRIES) {
			refuse(word);
		}
		parse_word(word, &plan.entries[plan.n++]);
	}
}

/* A new file counts anew even if it says the same. */
static void look(void)
{
	const char *folder = getenv("STANDIN_DIR");
	char path[512], text[PLAN_BYTES] = "";
	struct stat stat_;
	FILE *file;
	size_t n;

	snprintf(path, sizeof(path), "%s/faults", folder ? folder : "");
	if (!folder || stat(path, &stat_)) {
		return;
	}
	if (plan.from_file && stat_.st_ino == plan.inode &&
		memcmp(&stat_.st_mtim, &plan.changed, sizeof(plan.changed)) == 0) {
		return;
	}
	file = fopen(path, "re");
	if (!file) {
		return;
	}
	n = fread(text, 1, sizeof(text) - 1, file);
	text[n] = '\0';
	fclose(file);
	plan.from_file = true;
	plan.inode = stat_.st_ino;
	plan.changed = stat_.st_mtim;
	take_plan(text);
}

bool standin_planned(unsigned number)
{
	bool same;

	pthread_mutex_lock(&lock);
	look();
	same = plan.number == number;
	pthread_mutex_unlock(&lock);
	return same;
}

static struct fault ask(const char *call)
{
	struct fault fault = {FAULT_NONE, 0, 0};

	look();
	for (size_t i = 0; i < plan.n; i++) {
		struct entry *entry = &plan.entries[i];

		if (strcmp(entry->call, call) != 0) {
			continue;
		}
		entry->seen++;
		if (entry->seen >= entry->first && entry->seen <= entry->last) {
			fault = entry->fault;
		}
	}
	return fault;
}

static void hang(unsigned number)
{
	while (standin_planned(number)) {
		standin_nap(2000);
	}
}

struct fault standin_enter(const char *call, struct standin_cell *_Atomic *cell)
{
	struct fault fault;
	char name[56];

	pthread_mutex_lock(&lock);
	if (!atomic_load(cell)) {
		snprintf(name, sizeof(name), "calls.%s", call);
		atomic_store(cell, find_cell(name));
	}
	atomic_fetch_add(&atomic_load(cell)->value, 1);
	fault = ask(call);
	pthread_mutex_unlock(&lock);
	if (fault.kind == FAULT_HANG) {
		hang(fault.plan);
	} else if (fault.kind == FAULT_LATE) {
		standin_nap(fault.argument * 1000);
	} else {
		return fault;
	}
	return (struct fault){FAULT_NONE, 0, 0};
}
