package vixdisklib

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/internal/wire"
)

// launch starts a helper and has it load the library.
func (t *Transport) launch(ctx context.Context, clean redactor, use *attaching) (*process, error) {
	program, err := t.helperProgram()
	if err != nil {
		return nil, err
	}
	if t.Dir == "" {
		return nil, fmt.Errorf("no directory of VMware's library is configured: %w", vddk.ErrUnsupported)
	}
	dir, err := filepath.Abs(t.Dir)
	if err != nil {
		return nil, err
	}
	temp, err := t.tempDir()
	if err != nil {
		return nil, err
	}
	config, err := t.writeConfig(temp)
	if err != nil {
		return nil, err
	}
	p, err := spawn(program, environment(dir, temp), use)
	if err != nil {
		return nil, err
	}
	p.clean, p.log, p.use = clean, t.Log, use
	go p.attend()
	answer, err := p.call(ctx, wire.Init, wire.Encode(wire.Library{Dir: dir, Config: config, Grace: t.timeouts().End}), t.timeouts().Start)
	if err == nil {
		p.loaded, err = wire.Decode[wire.Loaded](answer)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil, errors.Join(context.Cause(ctx), p.end(t.grace(ctx)))
		}
		return nil, errors.Join(fmt.Errorf("%w: load VMware's library from %s: %w; vmkeep doctor --vddk %s tells more", vddk.ErrUnsupported, t.Dir, err, t.Dir), p.end(t.grace(ctx)))
	}
	return p, nil
}

// environment is what the helper needs and no more: the variables of this process may hold other passwords.
func environment(dir, temp string) []string {
	loader := filepath.Join(dir, "lib64") + ":" + dir
	if old := os.Getenv("LD_LIBRARY_PATH"); old != "" {
		loader += ":" + old
	}
	// A crash of the library needs no listing of the helper's goroutines.
	env := []string{"LD_LIBRARY_PATH=" + loader, "TMPDIR=" + temp, "GOTRACEBACK=none"}
	for _, name := range []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// spawn starts the program with its end of a socket pair and the shared memory. Both end with this process: the
// socket is nobody else's, so that its end is seen by the helper however this process dies. (A parent-death signal
// would be tied to the thread that started the helper, and would end it before it disconnected.)
func spawn(program string, env []string, use *attaching) (_ *process, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket pair for the helper: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(pair[0]))
	}
	p := &process{socket: os.NewFile(uintptr(pair[0]), "helper"), stderr: &tail{}, pending: map[uint64]func(uint64, []byte){}, dead: make(chan struct{})}
	p.out.W = p.socket
	defer func() {
		if err != nil {
			err = errors.Join(err, p.socket.Close())
		}
	}()
	fd, err := unix.MemfdCreate("vmkeep-vddk", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory shared with the helper: %w", err)
	}
	memory := os.NewFile(uintptr(fd), "memory")
	defer memory.Close()
	if err := memory.Truncate(wire.MemorySize); err != nil {
		return nil, fmt.Errorf("memory shared with the helper: %w", err)
	}
	// Sealed: a helper gone wild cannot take the memory away from under this process.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("seal the memory shared with the helper: %w", err)
	}
	mapped, err := unix.Mmap(fd, 0, wire.MemorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory shared with the helper: %w", err)
	}
	p.memory = newMemory(mapped, func() error { return unix.Munmap(mapped) })
	p.cmd = exec.Command(program)
	p.cmd.Env = env
	p.cmd.ExtraFiles = []*os.File{theirs, memory} // wire.SocketFile, wire.MemoryFile
	if use != nil {
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, use.lock) // wire.LockFile
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stderr, p.stderr
	p.cmd.WaitDelay = 5 * time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // keys of a terminal are for this process alone
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w: %w", program, err, vddk.ErrUnsupported), p.memory.end())
	}
	return p, nil
}

// tempDir makes the directory of the library's state, for nobody else.
func (t *Transport) tempDir() (string, error) {
	dir := t.TempDir
	if dir == "" {
		dir = filepath.Join(os.TempDir(), fmt.Sprintf("vmkeep-vddk-%d", os.Getuid()))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return "", err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || !info.IsDir() || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("%s must be a directory that only this user can write to, for the state of VMware's library: remove it or name another", dir)
	}
	return dir, nil
}

// writeConfig writes the library's configuration. Equal ones share a file, whose name is a hash: nothing is left over.
func (t *Transport) writeConfig(temp string) (string, error) {
	settings := map[string]string{"tmpDirectory": temp}
	maps.Copy(settings, t.Settings)
	var b strings.Builder
	if err := CheckSettings(settings); err != nil {
		return "", err
	}
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s=%s\n", k, settings[k])
	}
	sum := sha256.Sum256([]byte(b.String()))
	name := filepath.Join(temp, fmt.Sprintf("vixdisklib-%x.conf", sum[:8]))
	if old, err := os.ReadFile(name); err == nil && string(old) == b.String() {
		return name, nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	f, err := os.CreateTemp(temp, "vixdisklib-*.new")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(b.String())
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	return name, err
}
