#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "rules.h"

char root[4096];
LogFn *log_fn, *warn_fn, *panic_fn;

int here(void) { return (int)syscall(SYS_gettid); }

/* The directory above lib64, where this library lies. */
void find_root(void) {
	Dl_info info;
	if (root[0] || !dladdr((void *)find_root, &info) || !realpath(info.dli_fname, root)) return;
	for (int i = 0; i < 2; i++) {
		char *slash = strrchr(root, '/');
		if (slash) *slash = 0;
	}
}

static FILE *control(void) {
	char path[4200];
	snprintf(path, sizeof path, "%s/control", root);
	return fopen(path, "re");
}

int setting(const char *key, char *value, size_t size) {
	char line[1024];
	int found = 0;
	FILE *f = control();
	if (!f) return 0;
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		size_t n = strlen(key);
		if (!strncmp(line, key, n) && line[n] == '=') {
			snprintf(value, size, "%s", line + n + 1);
			found = 1;
		}
	}
	fclose(f);
	return found;
}

/* Calls that fitted the n-th fault line so far, for nth= and times=. */
static atomic_int fits[64];

static Fault parse(char *line, int number, const char *call, uint64_t first, uint64_t count, int *hold) {
	Fault f = {0};
	char *save, *word = strtok_r(line, " \n", &save);
	if (!word || strcmp(word, "fault")) return f;
	word = strtok_r(NULL, " \n", &save);
	if (!word || strcmp(word, call)) return f;
	long nth = 0, times = 0;
	unsigned long long a = 0, b = ~0ULL;
	*hold = 0;
	while ((word = strtok_r(NULL, " \n", &save))) {
		if (sscanf(word, "code=%lu", &f.code) == 1 || sscanf(word, "delay=%d", &f.delay) == 1) continue;
		if (sscanf(word, "nth=%ld", &nth) == 1 || sscanf(word, "times=%ld", &times) == 1) continue;
		if (sscanf(word, "lba=%llu-%llu", &a, &b) == 2) continue;
		if (!strcmp(word, "drop")) f.drop = 1;
		if (!strcmp(word, "flip")) f.flip = 1;
		if (!strcmp(word, "partial")) f.partial = 1;
		if (!strcmp(word, "abort")) f.die = 1;
		if (!strcmp(word, "segv")) f.segv = 1;
		if (!strcmp(word, "stuck")) f.stuck = 1;
		if (!strcmp(word, "panic")) f.panic = 1;
		if (!strcmp(word, "sync")) f.sync = 1;
		if (!strcmp(word, "hold")) *hold = 1;
	}
	if (first > b || first + count <= a) return f;
	int seen = *hold ? 1 : 1 + atomic_fetch_add(&fits[number % 64], 1);
	f.found = !(nth && seen != nth) && !(times && seen > times);
	return f;
}

/* The first fault that fits. One with "hold" lasts until the line is gone, then the search begins anew. */
Fault fault(const char *call, uint64_t first, uint64_t count) {
	for (;;) {
		char line[1024];
		int hold = 0, number = 0;
		Fault f = {0};
		FILE *c = control();
		if (!c) return f;
		while (!f.found && fgets(line, sizeof line, c)) f = parse(line, number++, call, first, count, &hold);
		fclose(c);
		if (!f.found) return (Fault){0};
		if (!hold) return f;
		struct timespec ms = {0, 1000000};
		nanosleep(&ms, NULL);
	}
}

VixError act(const Fault *f) {
	if (!f->found) return OK;
	if (f->delay) {
		struct timespec t = {f->delay / 1000, f->delay % 1000 * 1000000L};
		nanosleep(&t, NULL);
	}
	if (f->stuck) for (;;) pause();
	if (f->segv) *(volatile int *)8 = 1;
	if (f->die) abort();
	if (f->panic) broken("VERIFY bora/lib/fake/fake.c:42");
	return f->code;
}

void say(LogFn *fn, const char *fmt, ...) {
	va_list ap;
	if (!fn) return;
	va_start(ap, fmt);
	fn(fmt, ap);
	va_end(ap);
}

void broken(const char *rule) {
	find_root(); /* nobody may have done so yet */
	event("broken", rule);
	say(panic_fn, "%s", rule);
	abort();
}

void event(const char *call, const char *detail) {
	char path[4200], line[8192];
	snprintf(path, sizeof path, "%s/events", root);
	if (access(path, F_OK)) return;
	FILE *f = fopen(path, "ae");
	if (!f) return;
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	int n = snprintf(line, sizeof line, "{\"call\":\"%s\",\"detail\":\"%s\",\"pid\":%d,\"tid\":%d,\"us\":%ld}\n", call, detail, getpid(), here(), now.tv_sec * 1000000 + now.tv_nsec / 1000);
	fwrite(line, 1, n, f); /* one write: lines of threads do not mix */
	fclose(f);
}
