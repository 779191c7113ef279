package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

// programVariable tells where TestMain built the programs that vmkeep starts.
const programVariable = "VMKEEP_TEST_PROGRAMS"

func TestMain(m *testing.M) {
	testscript.Main(building{m}, map[string]func(){"vmkeep": main, earlierPlugin: playEarlier})
}

// building builds the programs that vmkeep starts before the tests run.
type building struct{ m *testing.M }

func (b building) Run() int {
	dir, err := os.MkdirTemp("", "vmkeep-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-o", dir, "../vmkeep-plugin", "../vmkeep-lab")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as "make build" does, so that little is left to build
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "building the plugin:", err)
		return 1
	}
	os.Setenv(programVariable, dir)
	return b.m.Run()
}

// TestScripts are commands without a vSphere: flags, settings, errors, help.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script", Setup: surroundings, Cmds: commands()})
}

// TestEndToEnd are commands on the lab: machine web with disks scsi0-0 (24 MiB, half full) and scsi0-1 (8 MiB, empty),
// machine db with one disk, machine linux with an ext4 file system.
func TestEndToEnd(t *testing.T) {
	scripts, err := filepath.Glob("testdata/e2e/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, script := range scripts {
		// One after the other: the simulator in the lab writes to a global variable when it starts. Scripts run in parallel
		// with what their test starts, hence a test for each.
		t.Run("sequence", func(t *testing.T) {
			testscript.Run(t, testscript.Params{Files: []string{script}, Cmds: commands(), Setup: laboratory})
		})
	}
}

// laboratory gives a script a lab of its own.
func laboratory(e *testscript.Env) error {
	if err := surroundings(e); err != nil {
		return err
	}
	l, err := startLab(e.WorkDir)
	if err != nil {
		return err
	}
	e.Defer(func() {
		if err := l.Close(); err != nil {
			e.T().Log(err)
		}
	})
	e.Values[labKey{}] = l
	for name, value := range labVariables(l) {
		e.Setenv(name, value)
	}
	e.Setenv("RESTIC_REPOSITORY", filepath.Join(e.WorkDir, "repo"))
	e.Setenv("RESTIC_PASSWORD", "geheim")
	return nil
}

type labKey struct{}

// startLab makes the vSphere of the tests. The content of the disk is in web.img.
func startLab(dir string) (*lab.Lab, error) {
	file := filepath.Join(dir, "web.img")
	data := make([]byte, 12<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(data, 4<<20)
	if err = errors.Join(err, f.Truncate(24<<20), f.Close()); err != nil {
		return nil, err
	}
	guest, err := linuxGuest(dir)
	if err != nil {
		return nil, err
	}
	return lab.Start(context.Background(), lab.Options{Dir: filepath.Join(dir, "lab"), Machines: []lab.Machine{
		{Name: "web", Folder: "prod", Disks: []lab.Disk{{Image: file}, {Size: 8 << 20}}},
		{Name: "db", Disks: []lab.Disk{{Size: 8 << 20}}},
		{Name: "linux", Disks: []lab.Disk{{Image: guest}}},
	}})
}

// linuxGuest makes the image of a disk with an ext4 file system.
func linuxGuest(dir string) (string, error) {
	tree := filepath.Join(dir, "tree")
	for name, content := range map[string]string{"etc/hostname": "linux\n", "etc/fstab": "/dev/sda / ext4 defaults 0 1\n", "srv/data/a.txt": "alpha\n", "srv/data/b.txt": "beta\n"} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return "", err
		}
	}
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/sbin/mke2fs" // not on everybody's PATH
	}
	image := filepath.Join(dir, "linux.img")
	if out, err := exec.Command(mke2fs, "-q", "-t", "ext4", "-L", "root", "-d", tree, image, "32M").CombinedOutput(); err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s (apt-get install e2fsprogs)", err, out)
	}
	return image, nil
}

func labVariables(l *lab.Lab) map[string]string {
	u := l.URL()
	password, _ := u.User.Password()
	return map[string]string{"GOVC_URL": u.Scheme + "://" + u.Host + u.Path, "GOVC_USERNAME": u.User.Username(), "GOVC_PASSWORD": password,
		"THUMBPRINT": l.Thumbprint(), "GOVC_INSECURE": "1"}
}

// surroundings gives a script a home of its own and none of the variables of whoever runs the tests.
func surroundings(e *testscript.Env) error {
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		if strings.HasPrefix(name, "GOVC_") || strings.HasPrefix(name, "RESTIC_") || strings.HasPrefix(name, "AWS_") || strings.HasPrefix(name, "VMKEEP_") || strings.HasPrefix(name, "XDG_") {
			e.Setenv(name, "")
		}
	}
	e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
	e.Setenv("TMPDIR", e.WorkDir)
	e.Setenv("PROGRAMS", os.Getenv(programVariable))
	earlier, err := exec.LookPath(earlierPlugin) // testscript put it there
	if err != nil {
		return err
	}
	e.Setenv("EARLIER", earlier)
	e.Setenv("VMKEEP_PLUGIN", filepath.Join(os.Getenv(programVariable), "vmkeep-plugin"))
	return os.Mkdir(filepath.Join(e.WorkDir, "home"), 0o700)
}

func commands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(ts *testscript.TestScript, neg bool, args []string){
		"exits":     exits,
		"jsonlines": jsonLines,
		"guest":     guest,
		"clean":     clean,
		"damage":    damage,
		"ruin":      ruin,
		"field":     field,
	}
}

// exits CODE PROGRAM ARG...: the program ends with that code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var e *exec.ExitError
	if errors.As(err, &e) {
		got = e.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, expected %d", got, want)
	}
}

// jsonlines FILE TYPE...: the file holds only JSON objects; message types as given are among them.
func jsonLines(ts *testscript.TestScript, _ bool, args []string) {
	missing := make(map[string]bool)
	for _, t := range args[1:] {
		missing[t] = true
	}
	for _, line := range strings.Split(strings.TrimSuffix(ts.ReadFile(args[0]), "\n"), "\n") {
		var object map[string]any
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			ts.Fatalf("%v in line %q", err, line)
		}
		t, _ := object["message_type"].(string)
		if t == "" {
			ts.Fatalf("no message_type in line %q", line)
		}
		delete(missing, t)
	}
	if len(missing) > 0 {
		ts.Fatalf("no lines of type %v", missing)
	}
}

// field VARIABLE FILE TYPE NAME: sets the variable to a text field of the last JSON line of that type.
func field(ts *testscript.TestScript, _ bool, args []string) {
	value := ""
	for _, line := range strings.Split(ts.ReadFile(args[1]), "\n") {
		var object map[string]any
		if json.Unmarshal([]byte(line), &object) == nil && object["message_type"] == args[2] {
			value, _ = object[args[3]].(string)
		}
	}
	if value == "" {
		ts.Fatalf("no field %s in lines of type %s", args[3], args[2])
	}
	ts.Setenv(args[0], value)
}

// guest MACHINE OFFSET TEXT: the guest writes to its first disk.
func guest(ts *testscript.TestScript, _ bool, args []string) {
	off, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	vm := ts.Value(labKey{}).(*lab.Lab).Machine(args[0])
	disks, err := vm.Disks()
	ts.Check(err)
	block := bytes.Repeat([]byte(args[2]), 512)[:512]
	ts.Check(vm.Write(disks[0].Key, block, off))
}

// ruin MACHINE snapshot|quiesce: vSphere fails to take snapshots of it, or to quiesce it for one.
func ruin(ts *testscript.TestScript, _ bool, args []string) {
	f := lab.MachineFaults{Snapshot: &types.GenericVmConfigFault{Reason: "the datastore is tired"}}
	if args[1] == "quiesce" {
		f = lab.MachineFaults{Quiesce: &types.ApplicationQuiesceFault{}}
	}
	ts.Check(ts.Value(labKey{}).(*lab.Lab).Machine(args[0]).SetFaults(f))
}

// damage REPOSITORY: a byte in the middle of the largest pack falls over.
func damage(ts *testscript.TestScript, _ bool, args []string) {
	packs, err := filepath.Glob(filepath.Join(args[0], "data", "*", "*"))
	ts.Check(err)
	largest, data := "", []byte(nil)
	for _, path := range packs {
		content, err := os.ReadFile(path)
		ts.Check(err)
		if len(content) > len(data) {
			largest, data = path, content
		}
	}
	data[len(data)/2] ^= 1
	ts.Check(os.Chmod(largest, 0o600))
	ts.Check(os.WriteFile(largest, data, 0o600))
}

// clean: no machine has a snapshot.
func clean(ts *testscript.TestScript, _ bool, _ []string) {
	l := ts.Value(labKey{}).(*lab.Lab)
	for _, name := range l.Machines() {
		if n := l.Machine(name).SnapshotCount(); n > 0 {
			ts.Fatalf("machine %s has %d snapshots", name, n)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	left, err := filepath.Glob(filepath.Join(ts.Getenv("TMPDIR"), "vmkeep-*"))
	ts.Check(err)
	if len(left) > 0 {
		ts.Fatalf("left behind: %v", left)
	}
}
