package vixdisklib_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vmkeep/vmkeep/vddk"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib"
	"github.com/vmkeep/vmkeep/vddk/vixdisklib/vixtest"
)

// The library says the password in its log, in the text of an error, and on stderr before it crashes.
func TestSecretsStayInside(t *testing.T) {
	t.Setenv("RESTIC_PASSWORD", "another secret of this process")
	k := newKit(t, newest())
	k.lib.Control("leak=1", "password="+password)
	spec, _ := k.disk(1 << 20)
	d := k.open(spec)
	for _, pid := range k.pids() {
		for _, name := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
			if err != nil || len(b) == 0 {
				t.Fatal(name, err)
			}
			if bytes.Contains(b, []byte(password)) || bytes.Contains(b, []byte("another secret")) {
				t.Errorf("%s of the helper has a secret: %q", name, b)
			}
		}
	}
	said := "" // all that errors say
	note := func(err error) {
		if err == nil {
			t.Error("no error")
		} else {
			said += err.Error() + "\n"
		}
	}
	bad := spec
	bad.Path += "-none"
	_, err := k.Open(t.Context(), bad)
	note(err)
	k.lib.Control("leak=1", "password="+password, "fault Read abort")
	_, err = d.ReadAt(make([]byte, 512), 0)
	note(err)
	if !strings.Contains(said, "with password [redacted]") || !strings.Contains(said, "stray output: [redacted]") {
		t.Errorf("the errors do not tell what they should: %s", said)
	}
	if log := k.logged(); !strings.Contains(log, "logging in with password [redacted] and thumbprint [redacted]") || strings.Contains(log, password) || strings.Contains(log, thumbprint) {
		t.Errorf("the log is %s", log)
	}
	if strings.Contains(said, password) {
		t.Errorf("an error has the password: %s", said)
	}
	files, err := filepath.Glob(filepath.Join(k.TempDir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	if b, err := os.ReadFile(files[0]); err != nil || bytes.Contains(b, []byte(password)) || !bytes.Contains(b, []byte("tmpDirectory="+k.TempDir)) {
		t.Errorf("the configuration is %q (%v)", b, err)
	}
}

func TestSessionInsteadOfPassword(t *testing.T) {
	for _, cookie := range []string{"right", "wrong"} {
		k := newKit(t, newest())
		k.lib.Control("cookie=right", "password=wrong")
		k.Credentials = func(context.Context) (vixdisklib.Credentials, error) {
			return vixdisklib.Credentials{Server: "vc.example.com", User: "u", Cookie: cookie, Thumbprint: thumbprint}, nil
		}
		spec, _ := k.disk(1 << 20)
		d, err := k.Open(t.Context(), spec)
		if (cookie == "right") != (err == nil) {
			t.Errorf("with the %s cookie: %v", cookie, err)
		}
		if err == nil {
			err = d.Close()
		}
		if cookie == "right" && err != nil || cookie == "wrong" && !errors.Is(err, vddk.ErrPermission) {
			t.Error(err)
		}
	}
}

func TestBadInputIsRefused(t *testing.T) {
	for name, change := range map[string]func(*kit, *vddk.Spec){
		"mode":          func(k *kit, _ *vddk.Spec) { k.Modes = []string{"nbdssl", "quick"} },
		"setting":       func(k *kit, _ *vddk.Spec) { k.Settings = map[string]string{"a\nb": "c"} },
		"server":        func(k *kit, _ *vddk.Spec) { k.Credentials = credentials("vc.example.com:443", "x") },
		"zero byte":     func(k *kit, _ *vddk.Spec) { k.Credentials = credentials("vc.example.com", "x\x00y") },
		"path":          func(_ *kit, s *vddk.Spec) { s.Path = "a\x00b" },
		"no helper":     func(k *kit, _ *vddk.Spec) { k.Helper = filepath.Join(k.Dir, "none") },
		"no library":    func(k *kit, _ *vddk.Spec) { k.Dir = filepath.Join(k.Dir, "none") },
		"no directory":  func(k *kit, _ *vddk.Spec) { k.Dir = "" },
		"file as state": func(k *kit, _ *vddk.Spec) { k.TempDir = k.Helper },
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t, newest())
			spec, _ := k.disk(1 << 20)
			change(k, &spec)
			d, err := k.Open(t.Context(), spec)
			if err == nil {
				d.Close()
				t.Fatal("it is accepted")
			}
			if strings.Contains(err.Error(), password) {
				t.Errorf("the error has the password: %v", err)
			}
			if p := k.pids(); len(p) > 0 {
				t.Errorf("helpers live on: %v", p)
			}
		})
	}
}

func credentials(server, password string) func(context.Context) (vixdisklib.Credentials, error) {
	return func(context.Context) (vixdisklib.Credentials, error) {
		return vixdisklib.Credentials{Server: server, User: "u", Password: password, Thumbprint: thumbprint}, nil
	}
}

func TestSettingsReachTheLibrary(t *testing.T) {
	k := newKit(t, newest())
	k.Settings = map[string]string{"vixDiskLib.nfcAio.Session.BufCount": "4"}
	spec, _ := k.disk(1 << 20)
	k.open(spec)
	for _, e := range k.lib.Events() {
		if e.Call == "InitEx" {
			b, err := os.ReadFile(e.Detail)
			if want := "tmpDirectory=" + k.TempDir + "\nvixDiskLib.nfcAio.Session.BufCount=4\n"; err != nil || string(b) != want {
				t.Errorf("the configuration is %q, not %q (%v)", b, want, err)
			}
			return
		}
	}
	t.Error("the library was not initialised")
}

func TestCompressionReachesTheLibrary(t *testing.T) {
	for compression, flags := range map[vixdisklib.Compression]string{vixdisklib.Uncompressed: "4", vixdisklib.Zlib: "20", vixdisklib.FastLZ: "36", vixdisklib.Skipz: "68"} {
		k := newKit(t, newest())
		k.Compression = compression
		spec, _ := k.disk(1 << 20)
		k.open(spec)
		if !slices.ContainsFunc(k.lib.Events(), func(e vixtest.Event) bool { return e.Call == "Opened" && e.Detail == flags }) {
			t.Errorf("a disk is not opened for reading with flags %s", flags)
		}
	}
}

func TestLibraryFitsVSphere(t *testing.T) {
	for _, c := range []struct {
		major   int
		vsphere string
		ok      bool
	}{
		{6, "5.5.0", false}, {6, "6.0.0", true}, {6, "7.0.3", true}, {6, "8.0.0", false}, {7, "6.0.0", false}, {7, "6.5.0", true}, {7, "8.0.3", true}, {7, "9.0.0", false},
		{8, "6.5.0", false}, {8, "6.7.0", true}, {8, "9.0.0", true}, {9, "6.7.0", false}, {9, "7.0.0", true}, {9, "10.0", true}, {9, "11.0", false}, {8, "tomorrow's", true},
	} {
		if f := vixdisklib.Fits(c.major, c.vsphere); f.OK != c.ok || f.OK != (f.Remedy == "") {
			t.Errorf("%d for %s: %+v", c.major, c.vsphere, f)
		}
	}
}

func TestAccess(t *testing.T) {
	held := func(k *kit) bool {
		_, err := os.Stat(filepath.Join(k.Dir, "access-vm-7"))
		return err == nil
	}
	why := errors.New("why")
	for name, fn := range map[string]func(*kit, context.CancelCauseFunc) error{
		"returns":   func(*kit, context.CancelCauseFunc) error { return nil },
		"fails":     func(*kit, context.CancelCauseFunc) error { return why },
		"cancelled": func(_ *kit, cancel context.CancelCauseFunc) error { cancel(why); return why },
		"killed":    func(k *kit, _ context.CancelCauseFunc) error { k.killHelpers(); return why },
		"refused": func(k *kit, _ context.CancelCauseFunc) error {
			err := k.WithAccess(context.Background(), "vm-7", "another", func(context.Context) error { return nil })
			if err == nil || !strings.Contains(err.Error(), "code 5") {
				return fmt.Errorf("another identity gives %v", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t, newest())
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			err := k.WithAccess(ctx, "vm-7", "vmkeep-test", func(context.Context) error {
				if !held(k) {
					t.Error("the machine is not held in place")
				}
				return fn(k, cancel)
			})
			if want := name != "returns" && name != "refused"; errors.Is(err, why) != want || !want && err != nil {
				t.Errorf("it gives %v", err)
			}
			if held(k) {
				t.Error("the machine stays held in place")
			}
		})
	}
	t.Run("identity", func(t *testing.T) {
		k := newKit(t, newest())
		if err := k.WithAccess(t.Context(), "vm-7", strings.Repeat("x", 51), nil); err == nil {
			t.Error("an identity of 51 bytes is accepted")
		}
	})
}

// usage is what this process holds.
func usage(t *testing.T) (descriptors, goroutines int, heap uint64) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return len(fds), runtime.NumGoroutine(), m.HeapAlloc
}

func resident(t *testing.T, pid int) (kib int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(b), "VmRSS:")
	if _, err := fmt.Sscanf(string(b[i:]), "VmRSS: %d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib
}

// soakVariable asks for another number of cycles, for example 20000 over night.
const soakVariable = "VMKEEP_SOAK_CYCLES"

// Some hundred lives of helpers, and as many lives of disks in one helper: neither side may grow.
func TestSoak(t *testing.T) {
	cycles := 250
	if v := os.Getenv(soakVariable); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			t.Fatalf("%s=%s: a positive number is needed", soakVariable, v)
		}
		cycles = n
	}
	k := newKit(t, newest())
	k.Log = nil
	spec, _ := k.disk(8 << 20)
	buf := make([]byte, 2<<20)
	cycle := func(s vddk.Spec) {
		d, err := k.Open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.ReadAt(buf, 1<<20); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const warm = 20
	for _, one := range []bool{false, true} {
		var stays vddk.Disk
		var first, helper, threads int
		if one {
			stays = k.open(spec)
			helper = k.pids()[0]
		}
		k.lib.Control()
		for range warm {
			cycle(spec)
		}
		fds, goroutines, heap := usage(t)
		if one {
			first, threads = resident(t, helper), tasks(t, helper)
		}
		for range cycles {
			cycle(spec)
		}
		fds2, goroutines2, heap2 := usage(t)
		t.Logf("%d cycles: descriptors %d, %d; goroutines %d, %d; heap %d, %d KiB", cycles, fds, fds2, goroutines, goroutines2, heap>>10, heap2>>10)
		if fds2 > fds || goroutines2 > goroutines || heap2 > heap+1<<20 {
			t.Error("it grows")
		}
		if one {
			if last, threads2 := resident(t, helper), tasks(t, helper); last > first+8<<10 || threads2 > threads+3 {
				t.Errorf("the helper grows from %d to %d KiB, from %d to %d threads", first, last, threads, threads2)
			} else {
				t.Logf("helper: %d, %d KiB; threads %d, %d", first, last, threads, threads2)
			}
			if err := stays.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func tasks(t *testing.T, pid int) int {
	t.Helper()
	l, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(l)
}

func TestExamineTellsWhatIsMissing(t *testing.T) {
	ctx := t.Context()
	find := func(t *testing.T, fs []vixdisklib.Finding, name string) vixdisklib.Finding {
		t.Helper()
		for _, f := range fs {
			if f.OK == (f.Remedy != "") || f.Detail == "" {
				t.Errorf("finding %+v: a remedy and nothing wrong, or the other way", f)
			}
			if f.Name == name {
				return f
			}
		}
		t.Fatalf("nothing is said of %s: %+v", name, fs)
		return vixdisklib.Finding{}
	}
	plugin := func(k *kit) {
		if err := os.WriteFile(filepath.Join(k.Dir, "lib64", "libdiskLibPlugin.so"), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range vixtest.Variants() {
		k := newKit(t, v)
		plugin(k)
		all, major := vixdisklib.Examine(ctx, k.Dir, k.Helper)
		if major != v.Major {
			t.Errorf("%s is examined as version %d", v, major)
		}
		for _, name := range []string{"directory", "libraries it needs", "advanced transports", "helper program", "loading", "modes"} {
			if f := find(t, all, name); !f.OK {
				t.Errorf("%s: %+v", v, f)
			}
		}
		if f := find(t, all, "loading"); !strings.Contains(f.Detail, fmt.Sprintf("version %d, libvixDiskLib.so.%s.1", v.Major, v)) {
			t.Errorf("%+v", f)
		}
	}
	lib := func(k *kit, name string) string { return filepath.Join(k.Dir, "lib64", name) }
	for name, c := range map[string]struct {
		break_         func(k *kit) (dir string, err error)
		finding, wants string
	}{
		"nothing there":     {func(k *kit) (string, error) { return filepath.Join(k.Dir, "none"), nil }, "directory", "lib64"},
		"too deep":          {func(k *kit) (string, error) { return lib(k, ""), nil }, "directory", "vmware-vix-disklib-distrib"},
		"too high":          {func(k *kit) (string, error) { return filepath.Dir(k.Dir), nil }, "directory", "give "},
		"lost link":         {func(k *kit) (string, error) { return k.Dir, os.Remove(lib(k, "libvixDiskLib.so.8")) }, "directory", "ln -s"},
		"empty file":        {func(k *kit) (string, error) { return k.Dir, os.Truncate(lib(k, "libvixDiskLib.so.8.0.1"), 0) }, "directory", "symbolic links"},
		"missing neighbour": {func(k *kit) (string, error) { return k.Dir, os.Remove(lib(k, "libsibling.so")) }, "libraries it needs", "unpack"},
		"damaged file": {func(k *kit) (string, error) {
			return k.Dir, os.WriteFile(lib(k, "libvixDiskLib.so.8.0.1"), []byte("x"), 0o755)
		}, "libraries it needs", "damaged"},
		"no plugin":        {func(k *kit) (string, error) { return k.Dir, os.Remove(lib(k, "libdiskLibPlugin.so")) }, "advanced transports", "unpack"},
		"no helper":        {func(k *kit) (string, error) { k.Helper = k.Dir + "/none"; return k.Dir, nil }, "helper program", "install"},
		"panics":           {func(k *kit) (string, error) { k.lib.Control("fault InitEx panic"); return k.Dir, nil }, "loading", ""},
		"local disks only": {func(k *kit) (string, error) { k.lib.Control("modes=file"); return k.Dir, nil }, "modes", "incomplete"},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t, newest())
			plugin(k)
			dir, err := c.break_(k)
			if err != nil {
				t.Fatal(err)
			}
			all, _ := vixdisklib.Examine(ctx, dir, k.Helper)
			if f := find(t, all, c.finding); f.OK || !strings.Contains(f.Remedy, c.wants) {
				t.Errorf("%+v", f)
			}
		})
	}
}
