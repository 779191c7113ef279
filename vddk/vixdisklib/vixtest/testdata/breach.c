/* Breaks one rule of the fake library:  breach LIBRARY CONFIG RULE
 * or, without RULE, lists the rules it can break; or, for the rule "codes", says what calls give that are refused with one.
 * The library lies in lib64 of a place whose control file is written here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>
#define MAJOR 8
#include "vixdisklib.h"

static void *lib;
static char place[4096], *config;

#define CALL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(lib, "VixDiskLib_" #name))

static void control(const char *line) {
	char path[4200];
	snprintf(path, sizeof path, "%s/control", place);
	FILE *f = fopen(path, "w");
	if (!f || fprintf(f, "%s\n", line) < 0 || fclose(f)) exit(3);
}

static void deaf(const char *fmt, va_list args) { (void)fmt, (void)args; }

static VixError init(uint32_t major, LogFn *log, const char *dir) {
	return CALL(VixError, InitEx, uint32_t, uint32_t, LogFn *, LogFn *, LogFn *, const char *, const char *)(major, 0, log, log, log, dir, config);
}

static void must(VixError e) {
	if (e) {
		fprintf(stderr, "code %lu\n", (unsigned long)e);
		exit(3);
	}
}

static ConnectParams *params(void) {
	ConnectParams *p = CALL(ConnectParams *, AllocateConnectParams, void)();
	p->vmxSpec = "moref=vm-1", p->serverName = "s", p->thumbPrint = "t", p->credType = UID;
	p->creds.uid.userName = "u", p->creds.uid.password = "p";
	return p;
}

static Connection connection(void) {
	Connection c = NULL;
	must(CALL(VixError, ConnectEx, ConnectParams *, Bool, const char *, const char *, Connection *)(params(), 0, NULL, "nbdssl", &c));
	return c;
}

static VixError open_(Connection c, const char *path, uint32_t flags, Handle *d) {
	return CALL(VixError, Open, Connection, const char *, uint32_t, Handle *)(c, path, flags, d);
}

static Handle disk(uint32_t flags) {
	Handle d = NULL;
	must(open_(connection(), "disk", flags, &d));
	return d;
}

static uint8_t buf[1 << 20];
static VixError read_(Handle d) { return CALL(VixError, Read, Handle, Sectors, Sectors, uint8_t *)(d, 0, 8, buf); }
static void done(void *data, VixError e) { (void)data, (void)e; }
static VixError later(Handle d, DoneFn *fn) { return CALL(VixError, ReadAsync, Handle, Sectors, Sectors, uint8_t *, DoneFn *, void *)(d, 0, 8, buf, fn, NULL); }
static VixError close_(Handle d) { return CALL(VixError, Close, Handle)(d); }
static VixError disconnect(Connection c) { return CALL(VixError, Disconnect, Connection)(c); }
static void exit_(void) { CALL(void, Exit, void)(); }
static VixError cleanup(ConnectParams *p) {
	uint32_t a, b;
	return CALL(VixError, Cleanup, ConnectParams *, uint32_t *, uint32_t *)(p, &a, &b);
}

/* elsewhere runs f on another thread. */
static void *run(void *f) { ((void (*)(void))f)(); return NULL; }
static pthread_t beside(void (*f)(void)) {
	pthread_t t;
	if (pthread_create(&t, NULL, run, (void *)f)) exit(3);
	return t;
}
static void elsewhere(void (*f)(void)) { pthread_join(beside(f), NULL); }

static Connection theConnection;
static Handle theDisk;
static void read_it(void) { read_(theDisk); }

/* held has another thread in a read that does not return. */
static void held(void) {
	char path[4200], seen[1 << 16];
	theDisk = disk(0);
	control("fault Read hold");
	beside(read_it);
	snprintf(path, sizeof path, "%s/events", place);
	for (;;) { /* until it is inside */
		FILE *f = fopen(path, "r");
		size_t n = f ? fread(seen, 1, sizeof seen - 1, f) : 0;
		seen[n] = 0;
		if (f) fclose(f);
		if (strstr(seen, "\"call\":\"Read\"")) break;
		usleep(1000);
	}
}

static void in_log(const char *fmt, va_list args) {
	(void)args;
	Handle d;
	if (!strncmp(fmt, "Opened", 6)) open_(theConnection, "disk", 0, &d);
}

#define START must(init(8, deaf, place))

static void before_init(void) { CALL(const char *, ListTransportModes, void)(); }
static void after_exit(void) { START; exit_(); before_init(); }
static void forked(void) {
	START;
	int status;
	if (!fork()) before_init();
	wait(&status);
	if (WIFSIGNALED(status)) raise(WTERMSIG(status));
}
static void second_init(void) { START; init(8, deaf, place); }
static void no_dir(void) { init(8, deaf, NULL); }
static void no_logger(void) { init(8, NULL, place); }
static void exit_elsewhere(void) { START; elsewhere(exit_); }
static void exit_open(void) { START; disk(0); exit_(); }
static void foreign_params(void) {
	static ConnectParams p;
	START;
	CALL(void, FreeConnectParams, ConnectParams *)(&p);
}
static VixError connect_with(ConnectParams *p) {
	Connection c;
	return CALL(VixError, ConnectEx, ConnectParams *, Bool, const char *, const char *, Connection *)(p, 0, NULL, NULL, &c);
}
static void no_params(void) { START; connect_with(NULL); }
static void no_server(void) { START; ConnectParams *p = params(); p->serverName = NULL; connect_with(p); }
static void no_thumb(void) { START; ConnectParams *p = params(); p->thumbPrint = NULL; connect_with(p); }
static void no_vmx(void) { START; ConnectParams *p = params(); p->vmxSpec = NULL; connect_with(p); }
static void no_secret(void) { START; ConnectParams *p = params(); p->creds.uid.password = NULL; connect_with(p); }
static void no_user(void) { START; ConnectParams *p = params(); p->creds.uid.userName = NULL; connect_with(p); }
static void no_result(void) { START; CALL(VixError, ConnectEx, ConnectParams *, Bool, const char *, const char *, Connection *)(params(), 0, NULL, NULL, NULL); }
static void connect_it(void) { connection(); }
static void connect_elsewhere(void) { START; elsewhere(connect_it); }
static void no_connection(void) { START; disconnect(NULL); }
static void disconnect_it(void) { disconnect(theConnection); }
static void disconnect_elsewhere(void) { START; theConnection = connection(); elsewhere(disconnect_it); }
static void no_identity(void) { START; CALL(VixError, PrepareForAccess, ConnectParams *, const char *)(params(), NULL); }
static void clean_it(void) { cleanup(params()); }
static void clean_elsewhere(void) { START; elsewhere(clean_it); }
static void clean_connected(void) { START; connection(); clean_it(); }
static void clean_in_use(void) {
	char path[4200], dir[2048] = "", line[2100];
	FILE *f = fopen(config, "r");
	while (f && fgets(line, sizeof line, f)) sscanf(line, "tmpDirectory=%2047[^\n]", dir);
	snprintf(path, sizeof path, "%s/attached-vm-1-0-0", dir);
	flock(open(path, O_WRONLY | O_CREAT, 0600), LOCK_EX); /* as another process that has it open */
	START;
	clean_it();
}
static void no_path(void) { START; Handle d; open_(connection(), NULL, 0, &d); }
static void open_it(void) { Handle d; open_(theConnection, "disk", 0, &d); }
static void open_elsewhere(void) { START; theConnection = connection(); elsewhere(open_it); }
static void overlap(void) { must(init(8, in_log, place)); theConnection = connection(); open_it(); }
static void no_handle(void) { START; close_(NULL); }
static void close_it(void) { close_(theDisk); }
static void close_elsewhere(void) { START; theDisk = disk(0); elsewhere(close_it); }
static void close_inside(void) { START; held(); close_it(); }
static void close_pending(void) { START; theDisk = disk(0); control("fault Read hold"); later(theDisk, done); close_it(); }
static void two_inside(void) { START; held(); read_it(); }
static void other_thread(void) { START; control("affinity=1"); theDisk = disk(0); must(read_(theDisk)); elsewhere(read_it); }
static void no_callback(void) { START; later(disk(0), NULL); }
static void no_info(void) { START; CALL(void, FreeInfo, Info *)(NULL); }
static void no_list(void) { START; CALL(VixError, FreeBlockList, BlockList *)(NULL); }

static const struct { const char *rule; void (*break_)(void); } breaches[] = {
	{"call before InitEx", before_init}, {"call after Exit", after_exit}, {"library used in a forked child", forked},
	{"second InitEx", second_init}, {"InitEx without libDir", no_dir}, {"NULL logger in a threaded process", no_logger},
	{"Exit on another thread than InitEx", exit_elsewhere}, {"Exit with open handles or connections", exit_open},
	{"FreeConnectParams of a pointer that was not allocated here", foreign_params},
	{"NULL ConnectParams", no_params}, {"NULL serverName", no_server}, {"NULL thumbPrint", no_thumb}, {"NULL vmxSpec", no_vmx},
	{"NULL secret", no_secret}, {"NULL userName", no_user}, {"NULL result", no_result},
	{"ConnectEx on another thread than InitEx", connect_elsewhere}, {"NULL connection", no_connection},
	{"Disconnect on another thread than InitEx", disconnect_elsewhere}, {"NULL identity", no_identity},
	{"Cleanup on another thread than InitEx", clean_elsewhere}, {"Cleanup before Disconnect", clean_connected},
	{"Cleanup of a machine whose disks are in use", clean_in_use},
	{"NULL path", no_path}, {"Open on another thread than InitEx", open_elsewhere}, {"Open and Close overlap", overlap},
	{"NULL handle", no_handle}, {"Close on another thread than InitEx", close_elsewhere},
	{"Close while a call is in the handle", close_inside}, {"Close with transfers in flight", close_pending},
	{"two threads in one handle", two_inside}, {"handle used from another thread", other_thread},
	{"async without callback", no_callback}, {"NULL info", no_info}, {"NULL block list", no_list},
};

static VixError blocks(Handle d, Sectors first, Sectors n, Sectors chunk) {
	BlockList *l;
	return CALL(VixError, QueryAllocatedBlocks, Handle, Sectors, Sectors, Sectors, BlockList **)(d, first, n, chunk, &l);
}

static void codes(void) {
	printf("newer than the library: %lu\n", init(9, deaf, place));
	START;
	Handle d = disk(FLAG_READ_ONLY | FLAG_UNBUFFERED), plain = disk(FLAG_READ_ONLY);
	must(read_(plain));
	printf("Read and ReadAsync on one handle: %lu\n", later(plain, done));
	printf("read beyond the end: %lu\n", CALL(VixError, Read, Handle, Sectors, Sectors, uint8_t *)(plain, 2047, 2, buf));
	printf("unbuffered into an odd address: %lu\n", CALL(VixError, Read, Handle, Sectors, Sectors, uint8_t *)(d, 0, 1, buf + 1 + (uintptr_t)buf % 512));
	printf("blocks of a chunk too small: %lu\n", blocks(plain, 0, 64, 64));
	printf("blocks from an odd sector: %lu\n", blocks(plain, 1, 128, 128));
	printf("blocks beyond the end: %lu\n", blocks(plain, 1920, 256, 128));
}

int main(int argc, char **argv) {
	size_t n = sizeof breaches / sizeof *breaches;
	if (argc < 4) {
		for (size_t i = 0; i < n; i++) puts(breaches[i].rule);
		return 0;
	}
	config = argv[2];
	if (!(lib = dlopen(argv[1], RTLD_NOW))) {
		fprintf(stderr, "%s\n", dlerror());
		return 3;
	}
	snprintf(place, sizeof place, "%s", argv[1]);
	for (int i = 0; i < 2; i++) *strrchr(place, '/') = 0;
	if (!strcmp(argv[3], "codes")) return codes(), 0;
	for (size_t i = 0; i < n; i++)
		if (!strcmp(breaches[i].rule, argv[3])) breaches[i].break_();
	return 0; /* the rule did not fire */
}
