package vixdisklib_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
)

const (
	password   = "p<ss w&rd/%41"
	thumbprint = "A1:B2:C3:D4:E5:F6:07:18:29:3A:4B:5C:6D:7E:8F:90:A1:B2:C3:D4"
)

// Where TestMain puts what it builds; tests find it through the environment, for children see it too.
const builtVariable = "VMKEEP_VIXTEST_BUILT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		child(dir)
		return
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vmkeep-vixdisklib")
	if err == nil {
		defer os.RemoveAll(dir)
		err = errors.Join(build(dir), os.Setenv(builtVariable, dir))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		if os.Getenv("CI") != "true" {
			if _, e := exec.LookPath("cc"); e != nil {
				fmt.Fprintln(os.Stderr, "skipped: these tests need a C compiler (apt-get install gcc libc6-dev); with CI=true that is an error")
				return 0
			}
		}
		return 1
	}
	if code := m.Run(); code != 0 {
		return code
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func build(dir string) error {
	if err := vixtest.Build(dir, vixtest.Variants()...); err != nil {
		return err
	}
	// As it is shipped, also when the tests run with the race detector.
	cmd := exec.Command("go", "build", "-o", filepath.Join(dir, "vmkeep-vddk"), "github.com/vmkeep/vmkeep/cmd/vmkeep-vddk")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the helper: %w\n%s", err, out)
	}
	return nil
}

// newest is the variant of tests for which it does not matter.
func newest() vixtest.Variant { return vixtest.Variant{Major: 8} }

// kit is a transport over a placed library.
type kit struct {
	*vixdisklib.Transport
	lib *vixtest.Library
	t   testing.TB

	mu  sync.Mutex
	log []string
}

func newKit(t testing.TB, v vixtest.Variant) *kit {
	t.Helper()
	built, err := filepath.EvalSymlinks(os.Getenv(builtVariable))
	if err != nil {
		t.Fatal(err)
	}
	k := &kit{lib: vixtest.New(t, built, v), t: t}
	k.Transport = &vixdisklib.Transport{
		Dir: k.lib.Dir, Helper: filepath.Join(built, "vmkeep-vddk"), TempDir: t.TempDir(),
		Credentials: func(context.Context) (vixdisklib.Credentials, error) {
			return vixdisklib.Credentials{Server: "vc.example.com", User: "backup@vsphere.local", Password: password, Thumbprint: thumbprint}, nil
		},
		Log: func(level vixdisklib.Level, text string) {
			k.mu.Lock()
			defer k.mu.Unlock()
			k.log = append(k.log, text)
		},
	}
	if err := os.Chmod(k.TempDir, 0o700); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *kit) logged() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return strings.Join(k.log, "\n")
}

// disk adds a disk and names it.
func (k *kit) disk(size int64) (vddk.Spec, *os.File) {
	k.t.Helper()
	path := "[ds (1)] " + k.t.Name() + "/disk.vmdk"
	return vddk.Spec{VM: "vm-7", Snapshot: "snapshot-8", Key: 2000, Path: path, Capacity: size}, k.lib.Add(path, size)
}

func (k *kit) open(spec vddk.Spec) vddk.Disk {
	k.t.Helper()
	d, err := k.Open(k.t.Context(), spec)
	if err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { d.Close() })
	return d
}

func (k *kit) calls() (out []string) {
	k.t.Helper()
	for _, e := range k.lib.Events() {
		out = append(out, e.Call)
	}
	return out
}

// pids lists the helpers that have loaded the library and live.
func (k *kit) pids() (out []int) {
	k.t.Helper()
	for _, e := range k.lib.Events() {
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", e.Pid)) // a number may be another process by now
		if err == nil && exe == k.Helper && !slices.Contains(out, e.Pid) {
			out = append(out, e.Pid)
		}
	}
	return out
}

// killHelpers does what a crash does, at a moment nobody expects.
func (k *kit) killHelpers() {
	for _, pid := range k.pids() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			k.t.Error(err)
		}
	}
}
