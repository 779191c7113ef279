/* A libvixDiskLib that serves files as disks, keeps the real one's rules by ending the process, and fails as the
 * control file says. Compiled with -DMAJOR=6..9 (soname) and -DMINOR (6 only: 5 or 7). */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "rules.h"

extern int vixtest_sibling(void); /* libsibling.so: not found without a loader path */

struct Conn {
	ConnectParams *params;
	char password[512];
	Bool readOnly;
	int snapshot, vm;
	int badThumb;
	char mode[64];
};

struct Disk {
	struct Conn *conn;
	int fd, flags, tid;
	int kept;     /* connection to the keeper of the disk; -1: none */
	int attached; /* what says that it is attached, locked; -1: it is not */
	char mark[4096];
	uint64_t sectors;
	atomic_int inside;  /* threads in calls on this handle */
	atomic_int kind;    /* 0, 'S'ync or 'A'sync transfers */
	pthread_mutex_t mu;
	pthread_cond_t idle;
	int pending;
};

static int initialised, exited, process, mainTid, opens, connections;
static atomic_int opening; /* threads in Open and Close */

static void inProcess(const char *call) {
	if (!initialised) broken("call before InitEx");
	if (exited) broken("call after Exit");
	if (getpid() != process) broken("library used in a forked child");
	event(call, "");
}

static void need(const void *p, const char *what) {
	if (!p) broken(what);
}

/* -- disks that are attached to this machine, for hotadd ---------------------------------------------------------- */

/* A file "attached-MACHINE-..." in tmpDirectory says so; it is locked while the disk is open, and stays when a process dies. */
static char state[2048];

static void find_state(const char *config) {
	char line[2100];
	FILE *f = config ? fopen(config, "re") : NULL;
	while (f && fgets(line, sizeof line, f)) sscanf(line, "tmpDirectory=%2047[^\n]", state);
	if (f) fclose(f);
}

static const char *machine(const ConnectParams *p) { return strncmp(p->vmxSpec, "moref=", 6) ? p->vmxSpec : p->vmxSpec + 6; }

static int attach(const ConnectParams *p, char *mark, size_t size) {
	static int last; /* Open is called by one thread */
	snprintf(mark, size, "%s/attached-%s-%d-%d", state, machine(p), getpid(), last++);
	int fd = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0) flock(fd, LOCK_EX);
	return fd;
}

static void detach_all(const ConnectParams *p, uint32_t *cleaned, uint32_t *remaining) {
	char prefix[512], keep[16];
	snprintf(prefix, sizeof prefix, "attached-%s-", machine(p));
	uint32_t stay = setting("stay-attached", keep, sizeof keep) ? atoi(keep) : 0;
	DIR *d = opendir(state);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		char path[4096];
		if (strncmp(e->d_name, prefix, strlen(prefix))) continue;
		if (*remaining < stay) {
			++*remaining;
			continue;
		}
		snprintf(path, sizeof path, "%s/%s", state, e->d_name);
		int fd = open(path, O_WRONLY | O_CLOEXEC);
		if (fd < 0) continue; /* closed meanwhile */
		if (flock(fd, LOCK_EX | LOCK_NB)) broken("Cleanup of a machine whose disks are in use");
		unlink(path);
		close(fd);
		++*cleaned;
	}
	if (d) closedir(d);
}

/* -- queue of asynchronous transfers ------------------------------------------------------------------------------- */

typedef struct Job {
	struct Job *next;
	Handle disk;
	uint64_t first, count;
	uint8_t *buf;
	int write;
	DoneFn *done;
	void *data;
} Job;

static Job *queue;
static pthread_mutex_t queueMu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queueCond = PTHREAD_COND_INITIALIZER;

static VixError transfer(Handle d, uint64_t first, uint64_t n, uint8_t *buf, int write, Fault *f) {
	*f = fault(write ? "Write" : "Read", first, n);
	VixError e = act(f);
	if (!e && (first > d->sectors || n > d->sectors - first)) e = OUT_OF_RANGE;
	if (!e && write && d->conn->readOnly) e = FILE_READ_ONLY;
	if (!e && write && d->flags & FLAG_READ_ONLY) e = FILE_READ_ONLY;
	if (!e && d->flags & FLAG_UNBUFFERED && (uintptr_t)buf % 512) e = INVALID_ARG;
	if (e && !f->partial) return e;
	size_t len = n * 512, at = 0;
	if (f->partial) len /= 2;
	while (at < len) {
		ssize_t k = write ? pwrite(d->fd, buf + at, len - at, first * 512 + at) : pread(d->fd, buf + at, len - at, first * 512 + at);
		if (k <= 0) return FAIL;
		at += k;
	}
	if (f->flip && len) buf[len / 2] ^= 1;
	return e;
}

static void *serve(void *unused) {
	(void)unused;
	unsigned seed = here();
	for (;;) {
		pthread_mutex_lock(&queueMu);
		while (!queue) pthread_cond_wait(&queueCond, &queueMu);
		/* Out of order: sometimes the second is taken before the first. */
		Job **at = &queue;
		if (queue->next && rand_r(&seed) % 4 == 0) at = &queue->next;
		Job *j = *at;
		*at = j->next;
		pthread_mutex_unlock(&queueMu);
		Fault f;
		VixError e = transfer(j->disk, j->first, j->count, j->buf, j->write, &f);
		if (!f.drop) {
			j->done(j->data, e);
			pthread_mutex_lock(&j->disk->mu);
			if (--j->disk->pending == 0) pthread_cond_broadcast(&j->disk->idle);
			pthread_mutex_unlock(&j->disk->mu);
		}
		free(j);
	}
	return NULL;
}

static void enter(Handle d, const char *call) {
	if (atomic_fetch_add(&d->inside, 1)) broken("two threads in one handle");
	inProcess(call); /* after it: whoever sees the event finds the thread inside */
	char v[8];
	if (setting("affinity", v, sizeof v)) {
		if (!d->tid) d->tid = here();
		if (d->tid != here()) broken("handle used from another thread");
	}
}

static void leave(Handle d) { atomic_fetch_sub(&d->inside, 1); }

static VixError move(Handle d, uint64_t first, uint64_t n, uint8_t *buf, int write, int kind) {
	int before = 0;
	if (!atomic_compare_exchange_strong(&d->kind, &before, kind) && before != kind) return MIXED;
	return d && buf && n ? OK : INVALID_ARG;
}

static VixError enqueue(Handle d, uint64_t first, uint64_t n, uint8_t *buf, int write, DoneFn *done, void *data) {
	need(done, "async without callback");
	enter(d, write ? "WriteAsync" : "ReadAsync");
	VixError e = move(d, first, n, buf, write, 'A');
	Fault f = fault(write ? "WriteAsync" : "ReadAsync", first, n);
	if (!e) e = act(&f);
	if (e || f.sync) {
		/* "sync" completes within the call, as HotAdd and local disks do. */
		if (!e) {
			Fault g;
			done(data, transfer(d, first, n, buf, write, &g));
			e = ASYNC;
		}
		leave(d);
		return e;
	}
	Job *j = calloc(1, sizeof *j);
	*j = (Job){NULL, d, first, n, buf, write, done, data};
	pthread_mutex_lock(&d->mu);
	d->pending++;
	pthread_mutex_unlock(&d->mu);
	pthread_mutex_lock(&queueMu);
	Job **end = &queue;
	while (*end) end = &(*end)->next;
	*end = j;
	pthread_cond_signal(&queueCond);
	pthread_mutex_unlock(&queueMu);
	leave(d);
	return ASYNC;
}

/* -- process ------------------------------------------------------------------------------------------------------- */

static void *chatter(void *unused) {
	(void)unused;
	char long_[3000];
	memset(long_, 'x', sizeof long_ - 1);
	long_[sizeof long_ - 1] = 0;
	for (int i = 0; i < 3; i++) {
		say(log_fn, "thread %d: %s %d %lld %p %.2f %c %u %x\n", i, "words", -1, 1LL << 40, (void *)0, 2.5, 'c', 7u, 255);
		say(log_fn, "%s", long_);
		say(warn_fn, "no newline %s", "at the end");
		say(log_fn, "Get CEIP status failed: %d\n", 404);
	}
	return NULL;
}

VixError VixDiskLib_InitEx(uint32_t major, uint32_t minor, LogFn *log, LogFn *warn, LogFn *panic, const char *libDir, const char *config) {
	log_fn = log, warn_fn = warn, panic_fn = panic;
	find_root();
	if (initialised) broken("second InitEx");
	need(libDir, "InitEx without libDir");
	need((void *)log, "NULL logger in a threaded process");
	if (major > MAJOR || !vixtest_sibling()) return NOT_SUPPORTED;
	(void)minor;
	char where[4096];
	if (!realpath(libDir, where) || strcmp(where, root)) {
		say(warn_fn, "Advanced transport plugin %s/lib64/libdiskLibPlugin.so not found\n", libDir);
		return 16053;
	}
	if (config && access(config, R_OK)) return INVALID_ARG;
	initialised = 1, process = getpid(), mainTid = here();
	find_state(config);
	event("InitEx", config ? config : "");
	Fault f = fault("InitEx", 0, 1);
	VixError e = act(&f);
	if (e) return e;
	pthread_t t;
	for (int i = 0; i < 4; i++)
		if (pthread_create(&t, NULL, serve, NULL) || pthread_detach(t)) return OUT_OF_MEMORY;
	char v[8];
	for (int i = 0; setting("chatter", v, sizeof v) && i < 3; i++)
		if (pthread_create(&t, NULL, chatter, NULL) || pthread_detach(t)) return OUT_OF_MEMORY;
	return OK;
}

void VixDiskLib_Exit(void) {
	inProcess("Exit");
	if (here() != mainTid) broken("Exit on another thread than InitEx");
	if (opens || connections) broken("Exit with open handles or connections");
	exited = 1;
	char path[4200];
	snprintf(path, sizeof path, "%s/exited", root); /* an orderly end leaves a mark for whoever made the place */
	FILE *f = access(path, F_OK) ? NULL : fopen(path, "ae");
	if (f) {
		fprintf(f, "%d\n", getpid());
		fclose(f);
	}
}

const char *VixDiskLib_ListTransportModes(void) {
	inProcess("ListTransportModes");
	static char modes[128];
	if (!setting("modes", modes, sizeof modes)) strcpy(modes, "file:san:hotadd:nbdssl:nbd");
	return modes;
}

char *VixDiskLib_GetErrorText(VixError e, const char *locale) {
	(void)locale;
	char text[128], secret[600], v[8];
	snprintf(text, sizeof text, "Fake text of error %u", (unsigned)(e & 0xffff));
	if ((e & 0xffff) == 15) strcpy(text, "The file is already in use");
	if ((e & 0xffff) == 4) strcpy(text, "The file was not found");
	if (setting("leak", v, sizeof v) && setting("password", secret, sizeof secret)) {
		char *both = malloc(1000);
		snprintf(both, 1000, "%s with password %s", text, secret);
		return both;
	}
	return strdup(text);
}

void VixDiskLib_FreeErrorText(char *text) { free(text); }

/* -- connections --------------------------------------------------------------------------------------------------- */

#if MAJOR > 6 || MINOR >= 7 /* before, callers bring memory of their own */
static ConnectParams *params[256];

ConnectParams *VixDiskLib_AllocateConnectParams(void) {
	inProcess("AllocateConnectParams");
	for (int i = 0; i < 256; i++)
		if (!params[i]) return params[i] = calloc(1, sizeof(ConnectParams));
	return NULL;
}

void VixDiskLib_FreeConnectParams(ConnectParams *p) {
	inProcess("FreeConnectParams");
	for (int i = 0; i < 256; i++)
		if (params[i] == p && p) {
			params[i] = NULL;
			memset(p, 0xdd, sizeof *p);
			free(p);
			return;
		}
	broken("FreeConnectParams of a pointer that was not allocated here");
}
#endif

/* The strings must be readable, and the same, whenever the library looks: reads all of them. */
static void readParams(const ConnectParams *p, int login) {
	need(p, "NULL ConnectParams");
	need(p->serverName, "NULL serverName");
	need(p->thumbPrint, "NULL thumbPrint");
	if (login) need(p->vmxSpec, "NULL vmxSpec");
	const char *secret = p->credType == SESSIONID ? p->creds.sessionId.cookie : p->creds.uid.password;
	const char *user = p->credType == SESSIONID ? p->creds.sessionId.userName : p->creds.uid.userName;
	need(secret, "NULL secret");
	need(user, "NULL userName");
	volatile size_t n = strlen(p->serverName) + strlen(p->thumbPrint) + strlen(secret) + strlen(user);
	(void)n;
}

static VixError login(const ConnectParams *p) {
	char want[600];
	const char *secret = p->credType == SESSIONID ? p->creds.sessionId.cookie : p->creds.uid.password;
	if (setting(p->credType == SESSIONID ? "cookie" : "password", want, sizeof want) && strcmp(want, secret)) return 3014;
	char v[8];
	if (setting("leak", v, sizeof v)) {
		say(log_fn, "logging in with password %s and thumbprint %s\n", secret, p->thumbPrint);
		fprintf(stderr, "stray output: %s\n", secret);
	}
	return OK;
}

VixError VixDiskLib_ConnectEx(ConnectParams *p, Bool readOnly, const char *snapshot, const char *modes, Connection *out) {
	inProcess("ConnectEx");
	if (here() != mainTid) broken("ConnectEx on another thread than InitEx");
	readParams(p, 1);
	need(out, "NULL result");
	Fault f = fault("ConnectEx", 0, 1);
	VixError e = act(&f);
	if (!e) e = login(p);
	if (e) return e;
	if (strncmp(p->vmxSpec, "moref=", 6)) return 4000;
	struct Conn *c = calloc(1, sizeof *c);
	c->params = p;
	c->readOnly = readOnly;
	c->snapshot = snapshot && *snapshot;
	char want[256];
	c->badThumb = setting("thumbprint", want, sizeof want) && strcasecmp(want, p->thumbPrint); /* noticed at Open */
	/* The first asked for that there is; a lone unavailable one falls back to nbdssl. */
	char have[128] = "file:san:hotadd:nbdssl:nbd", ask[128];
	setting("modes", have, sizeof have);
	snprintf(ask, sizeof ask, "%s", modes && *modes ? modes : "file:san:hotadd:nbdssl:nbd");
	strcpy(c->mode, "nbdssl");
	char *save, *m;
	for (m = strtok_r(ask, ":", &save); m; m = strtok_r(NULL, ":", &save)) {
		char all[132], one[70];
		snprintf(all, sizeof all, ":%s:", have);
		snprintf(one, sizeof one, ":%.60s:", m);
		if (strstr(all, one) && strcmp(m, "file") && strcmp(m, "san")) {
			snprintf(c->mode, sizeof c->mode, "%s", m);
			break;
		}
	}
	event("Connected", c->mode);
	connections++;
	*out = c;
	return OK;
}

VixError VixDiskLib_Disconnect(Connection c) {
	inProcess("Disconnect");
	need(c, "NULL connection");
	if (here() != mainTid) broken("Disconnect on another thread than InitEx");
	readParams(c->params, 1); /* they must still be there */
	connections--;
	free(c);
	return OK;
}

static VixError access_(ConnectParams *p, const char *identity, const char *call, int on) {
	inProcess(call);
	readParams(p, 1);
	need(identity, "NULL identity");
	if (strlen(identity) > 50) return INVALID_ARG;
	Fault f = fault(call, 0, 1);
	VixError e = act(&f);
	if (e) return e;
	char path[4400], holder[64] = "";
	snprintf(path, sizeof path, "%s/access-%.200s", root, p->vmxSpec + 6);
	FILE *x = fopen(path, "re");
	if (x) {
		if (!fgets(holder, sizeof holder, x)) holder[0] = 0;
		fclose(x);
	}
	if (*holder && strcmp(holder, identity)) return BUSY_ACCESS;
	if (!on) return unlink(path) && errno != ENOENT ? FAIL : OK;
	x = fopen(path, "we");
	if (!x) return FAIL;
	fputs(identity, x);
	fclose(x);
	return OK;
}

VixError VixDiskLib_PrepareForAccess(ConnectParams *p, const char *identity) { return access_(p, identity, "PrepareForAccess", 1); }
VixError VixDiskLib_EndAccess(ConnectParams *p, const char *identity) { return access_(p, identity, "EndAccess", 0); }

VixError VixDiskLib_Cleanup(ConnectParams *p, uint32_t *cleaned, uint32_t *remaining) {
	inProcess("Cleanup");
	readParams(p, 0);
	if (here() != mainTid) broken("Cleanup on another thread than InitEx");
	if (connections) broken("Cleanup before Disconnect");
	Fault f = fault("Cleanup", 0, 1);
	VixError e = act(&f);
	*cleaned = *remaining = 0;
	if (!e) detach_all(p, cleaned, remaining);
	return e;
}

/* -- disks --------------------------------------------------------------------------------------------------------- */

/* Asks the keeper of disks, which listens at a socket, for the file of one: "r PATH" or "w PATH" is answered by "CODE FILE".
 * The disk counts as open for as long as the connection is. */
static VixError ask_keeper(const char *keeper, const char *path, int write, char *name, size_t size, int *kept) {
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	snprintf(at.sun_path, sizeof at.sun_path, "%s", keeper);
	int s = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	FILE *f = s < 0 ? NULL : fdopen(s, "r+");
	char line[8400];
	unsigned code;
	int from = 0, n = snprintf(line, sizeof line, "%c %s\n", write ? 'w' : 'r', path);
	if (!f || connect(s, (struct sockaddr *)&at, sizeof at) || send(s, line, n, MSG_NOSIGNAL) != n || !fgets(line, sizeof line, f) ||
	    sscanf(line, "%u %n", &code, &from) < 1) code = FAIL;
	line[strcspn(line, "\n")] = 0;
	snprintf(name, size, "%s", line + from);
	*kept = code ? -1 : fcntl(s, F_DUPFD_CLOEXEC, 0);
	if (f) fclose(f);
	return code;
}

VixError VixDiskLib_Open(Connection c, const char *path, uint32_t flags, Handle *out) {
	inProcess("Open");
	need(c, "NULL connection");
	need(path, "NULL path");
	if (here() != mainTid) broken("Open on another thread than InitEx");
	if (atomic_fetch_add(&opening, 1)) broken("Open and Close overlap");
	Fault f = fault("Open", 0, 1);
	VixError e = act(&f);
	char v[256], name[8400];
	if (!e && c->badThumb) e = FAIL;
	if (!e && setting("needs-snapshot", v, sizeof v) && !c->snapshot) e = FILE_ACCESS;
	int n = snprintf(name, sizeof name, "%s/disks/", root);
	for (const char *s = path; *s && n < (int)sizeof name - 1; s++) name[n++] = *s == '/' ? '%' : *s;
	name[n] = 0;
	int write = !(flags & FLAG_READ_ONLY) && !c->readOnly, fd = -1, kept = -1;
	if (!e && setting("keeper", v, sizeof v)) e = ask_keeper(v, path, write, name, sizeof name, &kept);
	if (!e) {
		fd = open(name, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC);
		if (fd < 0) e = errno == ENOENT ? FILE_NOT_FOUND : FILE_ACCESS;
	}
	if (!e && write && flock(fd, LOCK_EX | LOCK_NB)) e = FILE_LOCKED;
	struct stat st;
	if (!e && fstat(fd, &st)) e = FAIL;
	if (e) {
		if (fd >= 0) close(fd);
		if (kept >= 0) close(kept);
	} else {
		Handle d = calloc(1, sizeof *d);
		d->conn = c, d->fd = fd, d->kept = kept, d->flags = flags, d->sectors = st.st_size / 512, d->attached = -1;
		if (*state && !strcmp(c->mode, "hotadd")) d->attached = attach(c->params, d->mark, sizeof d->mark);
		pthread_mutex_init(&d->mu, NULL);
		pthread_cond_init(&d->idle, NULL);
		opens++;
		*out = d;
		snprintf(v, sizeof v, "%u", flags);
		event("Opened", v);
		say(log_fn, "Opened 'vpxa-nfcssl://%s@esx1.example.com:902'\n", path);
	}
	atomic_fetch_sub(&opening, 1);
	return e;
}

VixError VixDiskLib_Close(Handle d) {
	need(d, "NULL handle");
	inProcess("Close");
	if (here() != mainTid) broken("Close on another thread than InitEx");
	if (atomic_fetch_add(&opening, 1)) broken("Open and Close overlap");
	if (atomic_load(&d->inside)) broken("Close while a call is in the handle");
	Fault f = fault("Close", 0, 1);
	VixError e = act(&f);
	pthread_mutex_lock(&d->mu);
	int pending = d->pending;
	pthread_mutex_unlock(&d->mu);
	if (pending) broken("Close with transfers in flight");
	close(d->fd);
	if (d->kept >= 0) close(d->kept);
	if (d->attached >= 0) {
		unlink(d->mark);
		close(d->attached);
	}
	pthread_mutex_destroy(&d->mu);
	pthread_cond_destroy(&d->idle);
	free(d);
	opens--;
	atomic_fetch_sub(&opening, 1);
	return e;
}

VixError VixDiskLib_GetInfo(Handle d, Info **out) {
	enter(d, "GetInfo");
	Fault f = fault("GetInfo", 0, 1);
	VixError e = act(&f);
	if (!e) {
		Info *i = calloc(1, sizeof *i);
		i->capacity = d->sectors, i->adapterType = 3, i->numLinks = 1, i->uuid = strdup("60 00 C2 9a");
#if MAJOR >= 7
		char size[16];
		i->logicalSectorSize = setting("sector", size, sizeof size) ? atoi(size) : 512, i->physicalSectorSize = 512;
#endif
		*out = i;
	}
	leave(d);
	return e;
}

void VixDiskLib_FreeInfo(Info *i) {
	need(i, "NULL info");
	free(i->uuid);
	free(i);
}

const char *VixDiskLib_GetTransportMode(Handle d) {
	inProcess("GetTransportMode");
	return d->conn->mode;
}

static VixError synchronous(Handle d, uint64_t first, uint64_t n, uint8_t *buf, int write) {
	enter(d, write ? "Write" : "Read");
	VixError e = move(d, first, n, buf, write, 'S');
	Fault f;
	if (!e) e = transfer(d, first, n, buf, write, &f);
	leave(d);
	return e;
}

VixError VixDiskLib_Read(Handle d, Sectors first, Sectors n, uint8_t *buf) { return synchronous(d, first, n, buf, 0); }
VixError VixDiskLib_Write(Handle d, Sectors first, Sectors n, const uint8_t *buf) { return synchronous(d, first, n, (uint8_t *)buf, 1); }

VixError VixDiskLib_ReadAsync(Handle d, Sectors first, Sectors n, uint8_t *buf, DoneFn *done, void *data) { return enqueue(d, first, n, buf, 0, done, data); }
VixError VixDiskLib_WriteAsync(Handle d, Sectors first, Sectors n, const uint8_t *buf, DoneFn *done, void *data) { return enqueue(d, first, n, (uint8_t *)buf, 1, done, data); }

VixError VixDiskLib_Wait(Handle d) {
	enter(d, "Wait");
	pthread_mutex_lock(&d->mu);
	while (d->pending) pthread_cond_wait(&d->idle, &d->mu);
	pthread_mutex_unlock(&d->mu);
	leave(d);
	return OK;
}

VixError VixDiskLib_Flush(Handle d) {
	enter(d, "Flush");
	Fault f = fault("Flush", 0, 1);
	VixError e = act(&f);
	if (!e && fsync(d->fd)) e = FAIL;
	leave(d);
	return e;
}

#if MAJOR > 6 || MINOR >= 7
VixError VixDiskLib_QueryAllocatedBlocks(Handle d, Sectors first, Sectors n, Sectors chunk, BlockList **out) {
	enter(d, "QueryAllocatedBlocks");
	Fault f = fault("QueryAllocatedBlocks", first, n);
	VixError e = act(&f);
	if (!e && (chunk < 128 || first % chunk || n % chunk || !n || n / chunk > 524288 || first + n > d->sectors)) e = INVALID_ARG;
	if (!e) {
		BlockList *l = calloc(1, sizeof *l + n / chunk * sizeof(Block));
		char *buf = malloc(chunk * 512);
		for (uint64_t at = first; at < first + n; at += chunk) {
			off_t data = lseek(d->fd, at * 512, SEEK_DATA); /* a hole that fills the chunk needs no reading */
			if (data < 0 ? errno == ENXIO : data >= (off_t)((at + chunk) * 512)) continue;
			if (pread(d->fd, buf, chunk * 512, at * 512) != (ssize_t)(chunk * 512)) e = FAIL;
			if (buf[0] || memcmp(buf, buf + 1, chunk * 512 - 1)) l->blocks[l->numBlocks++] = (Block){at, chunk};
		}
		free(buf);
		*out = l;
	}
	leave(d);
	return e;
}

VixError VixDiskLib_FreeBlockList(BlockList *l) {
	need(l, "NULL block list");
	free(l);
	return OK;
}
#endif
