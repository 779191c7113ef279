package repo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmkeep/vmkeep/repo/backend"
	"github.com/vmkeep/vmkeep/repo/backend/backendtest/peers"
	"github.com/vmkeep/vmkeep/repo/backend/local"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// onDisk makes a repository of ours in a directory and a restic that works on it.
func onDisk(t *testing.T) (*Repository, backend.Backend, *peers.Runner) {
	t.Helper()
	p := peers.Local(t)
	be, err := local.Create(p.Location, 2)
	if err != nil {
		t.Fatal(err)
	}
	r, err := Init(t.Context(), be, InitOptions{Password: peers.Password, KeyTime: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = be.Close() })
	return r, be, peers.Restic(t, p)
}

// openDir opens a repository in a directory, whoever made it.
func openDir(t *testing.T, dir string) *Repository {
	t.Helper()
	be, err := local.Open(dir, 2)
	if err != nil {
		t.Fatal(err)
	}
	return mustOpen(t, be)
}

func mustOpen(t *testing.T, be backend.Backend) *Repository {
	t.Helper()
	r, err := Open(t.Context(), be, OpenOptions{Password: peers.Password})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func wantClean(t *testing.T, r *Repository) *CheckReport {
	t.Helper()
	report, err := r.Check(t.Context(), CheckOptions{ReadData: ReadData{All: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		t.Errorf("check: %s: %s", f.Severity, f.Text)
	}
	return report
}

// machine is a point as backups make them: parts of a disk in directories of their own, the second one a hole.
type machine struct{ parts [2][]byte }

const machineText = "a text file with a \"name\" to quote"

func newMachine(seed uint64) machine {
	return machine{[2][]byte{noise(seed, 3e6+17), make([]byte, 5*restic.ZeroChunkSize+4096)}}
}

func (m machine) commit(ctx context.Context, r *Repository, host string, at time.Time) (*restic.Snapshot, error) {
	var s *restic.Snapshot
	id, err := r.Commit(ctx, func(_ context.Context, w *Writer) (*restic.Snapshot, error) {
		dir := restic.Tree{}
		for i, data := range m.parts {
			c := w.Content()
			var err error
			if i == 1 {
				err = c.Zeros(int64(len(data)))
			} else {
				for piece := range slices.Chunk(data, 700_000) {
					if err = c.Append(piece); err != nil {
						break
					}
				}
			}
			if err != nil {
				return nil, err
			}
			ids, err := c.IDs()
			if err != nil {
				return nil, err
			}
			part, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{fileNode("flat.vmdk", ids, c.Size())}})
			if err != nil {
				return nil, err
			}
			dir.Nodes = append(dir.Nodes, dirNode(fmt.Sprintf("%04d", i), part))
		}
		disk, err := w.SaveTree(&dir)
		if err != nil {
			return nil, err
		}
		text, err := w.SaveFile([]byte(machineText))
		if err != nil {
			return nil, err
		}
		top, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{
			fileNode("a \"quoted\\ <näme>", text, int64(len(machineText))), dirNode("scsi0-0", disk), fileNode("z-empty", []restic.ID{}, 0),
		}})
		if err != nil {
			return nil, err
		}
		root, err := w.SaveTree(&restic.Tree{Nodes: []restic.Node{dirNode(host, top)}})
		st := w.Stats()
		s = &restic.Snapshot{Time: at, Tree: &root, Paths: []string{"/" + host}, Hostname: host, Username: "vmkeep", Tags: []string{"crash"},
			ProgramVersion: "vmkeep test", Summary: &restic.Summary{BackupStart: at, BackupEnd: at, DataAdded: uint64(st.Added), TotalBytesProcessed: 123456789}}
		return s, err
	})
	if s != nil {
		s.ID = id
	}
	return s, err
}

// want compares a restored tree.
func (m machine) want(t *testing.T, dir string) {
	t.Helper()
	for i, data := range m.parts {
		got, err := os.ReadFile(filepath.Join(dir, "scsi0-0", fmt.Sprintf("%04d", i), "flat.vmdk"))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("part %d came back different: %d bytes, %v", i, len(got), err)
		}
	}
	if got, err := os.ReadFile(filepath.Join(dir, "a \"quoted\\ <näme>")); err != nil || string(got) != machineText {
		t.Errorf("text: %q, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "z-empty")); err != nil || info.Size() != 0 {
		t.Errorf("empty file: %v, %v", info, err)
	}
}

// clone copies a repository and gives a restic for the copy.
func clone(t *testing.T, from string) (string, *peers.Runner) {
	t.Helper()
	p := peers.Local(t)
	if err := os.CopyFS(p.Location, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return p.Location, peers.Restic(t, p)
}

func TestEveryCommandOfResticWorksOnOurRepository(t *testing.T) {
	r, be, peer := onDisk(t)
	day := time.Date(2026, 3, 1, 2, 3, 4, 0, time.UTC)
	one, two := newMachine(1), newMachine(1)
	two.parts[0] = changed(one.parts[0], 1, 50)
	s1, err := one.commit(t.Context(), r, "web01", day)
	if err != nil {
		t.Fatal(err)
	}
	s2, err := two.commit(t.Context(), r, "web01", day.AddDate(0, 0, 1))
	if err != nil {
		t.Fatal(err)
	}
	home := be.Location()
	contains := func(t *testing.T, out string, wants ...string) {
		t.Helper()
		for _, w := range wants {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in the output:\n%s", w, out)
			}
		}
	}
	clean := func(t *testing.T, dir string) {
		t.Helper()
		wantClean(t, openDir(t, dir))
	}

	t.Run("check", func(t *testing.T) { peer.Run("check", "--read-data") })
	t.Run("snapshots", func(t *testing.T) {
		contains(t, peer.Run("snapshots"), s1.ID.Short(), s2.ID.Short(), "web01", "crash", "117.738 MiB", "2 snapshots")
		contains(t, peer.Run("snapshots", "--json", "--host", "web01", "--path", "/web01", "--tag", "crash"), s2.ID.String())
	})
	t.Run("ls", func(t *testing.T) {
		contains(t, peer.Run("ls", "--long", "latest"), "/web01/scsi0-0/0001/flat.vmdk", fmt.Sprint(len(one.parts[1])), `/web01/a "quoted\ <näme>`)
	})
	t.Run("find", func(t *testing.T) {
		contains(t, peer.Run("find", "flat.vmdk"), "/web01/scsi0-0/0000/flat.vmdk", s1.ID.Short())
	})
	t.Run("dump", func(t *testing.T) {
		if got := peer.Run("dump", s1.ID.String(), "/web01/scsi0-0/0000/flat.vmdk"); got != string(one.parts[0]) {
			t.Error("dump gives other bytes")
		}
	})
	t.Run("cat", func(t *testing.T) { contains(t, peer.Run("cat", "snapshot", s1.ID.Short()), `"vmkeep test"`) })
	t.Run("restore", func(t *testing.T) {
		dir := t.TempDir()
		peer.Run("restore", s2.ID.String(), "--target", dir, "--verify")
		two.want(t, filepath.Join(dir, "web01"))
	})
	t.Run("restore --sparse", func(t *testing.T) {
		dir := t.TempDir()
		peer.Run("restore", "latest", "--sparse", "--target", dir)
		two.want(t, filepath.Join(dir, "web01"))
		info, err := os.Stat(filepath.Join(dir, "web01/scsi0-0/0001/flat.vmdk"))
		if err != nil {
			t.Fatal(err)
		}
		if blocks := info.Sys().(*syscall.Stat_t).Blocks * 512; blocks > 64<<10 {
			t.Errorf("a hole of %d bytes was restored into %d bytes", info.Size(), blocks)
		}
	})
	t.Run("diff", func(t *testing.T) {
		contains(t, peer.Run("diff", s1.ID.String(), s2.ID.String()), "/web01/scsi0-0/0000/flat.vmdk", "Files:           0 new,     0 removed,     1 changed")
	})
	t.Run("stats", func(t *testing.T) {
		for _, mode := range []string{"restore-size", "files-by-contents", "blobs-per-file", "raw-data"} {
			contains(t, peer.Run("stats", "--mode", mode), "Snapshots processed:")
		}
	})
	t.Run("mount", func(t *testing.T) {
		mounted(t, peer, s2.ID, func(root string) { two.want(t, filepath.Join(root, "web01")) })
	})
	t.Run("copy", func(t *testing.T) {
		other := peers.Local(t)
		to := peers.Restic(t, other)
		to.Run("init", "--from-repo", home, "--copy-chunker-params", "--from-password-command", "echo "+peers.Password)
		to.Run("copy", "--from-repo", home, "--from-password-command", "echo "+peers.Password)
		to.Run("check", "--read-data")
		copied := openDir(t, other.Location)
		if copied.Config().Polynomial != r.Config().Polynomial {
			t.Error("the chunker's parameters were not copied")
		}
		report := wantClean(t, copied)
		if report.Snapshots != 2 {
			t.Errorf("%d snapshots were copied", report.Snapshots)
		}
		// And back into a repository of ours.
		r2, _, back := onDisk(t)
		back.Run("copy", "--from-repo", other.Location, "--from-password-command", "echo "+peers.Password)
		if report := wantClean(t, r2); report.Snapshots != 2 {
			t.Errorf("%d snapshots were copied back", report.Snapshots)
		}
	})
	t.Run("tag", func(t *testing.T) {
		dir, peer := clone(t, home)
		peer.Run("tag", "--add", "kept", s1.ID.String())
		all, err := openDir(t, dir).Snapshots(t.Context())
		if err != nil || len(all) != 2 || !slices.Contains(all[0].Tags, "kept") || *all[0].Original != s1.ID || all[0].Summary == nil {
			t.Errorf("%+v, %v", all[0], err)
		}
	})
	t.Run("rewrite", func(t *testing.T) {
		dir, peer := clone(t, home)
		contains(t, peer.Run("rewrite", "--exclude", "z-empty", "--forget"), "modified 2 snapshots")
		peer.Run("check", "--read-data")
		r := openDir(t, dir)
		s, err := r.LoadSnapshot(t.Context(), "latest")
		if err != nil || *s.Original != s2.ID {
			t.Fatalf("%+v, %v", s, err)
		}
	})
	t.Run("forget and prune", func(t *testing.T) {
		dir, peer := clone(t, home)
		contains(t, peer.Run("forget", "--keep-last", "1", "--prune", "--max-unused", "0"), "keep 1 snapshots", "remove 1 snapshots")
		peer.Run("check", "--read-data")
		clean(t, dir)
		target := t.TempDir()
		peer.Run("restore", "latest", "--target", target)
		two.want(t, filepath.Join(target, "web01"))
	})
	t.Run("repair index", func(t *testing.T) {
		dir, peer := clone(t, home)
		indexes, err := filepath.Glob(filepath.Join(dir, "index", "*"))
		if err != nil || len(indexes) == 0 {
			t.Fatal(indexes, err)
		}
		for _, name := range indexes {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		peer.Run("repair", "index")
		clean(t, dir)
	})
	t.Run("repair snapshots", func(t *testing.T) {
		_, peer := clone(t, home)
		contains(t, peer.Run("repair", "snapshots"), "no snapshots were modified")
	})
	t.Run("key", func(t *testing.T) {
		dir, peer := clone(t, home)
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte("another"), 0o600); err != nil {
			t.Fatal(err)
		}
		peer.Run("key", "add", "--new-password-file", file, "--user", "u", "--host", "h")
		contains(t, peer.Run("key", "list"), "u", "h")
		be, err := local.Open(dir, 2)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Open(t.Context(), be, OpenOptions{Password: "another"})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		keys, err := r.Keys(t.Context())
		if err != nil || len(keys) != 2 {
			t.Fatal(keys, err)
		}
		i := slices.IndexFunc(keys, func(k KeyInfo) bool { return k.Current })
		if keys[i].Username != "u" || keys[i].Hostname != "h" {
			t.Errorf("%+v", keys[i])
		}
		peer.Run("key", "remove", keys[i].ID.String())
		if _, err := Open(t.Context(), be, OpenOptions{Password: "another"}); err == nil {
			t.Error("a removed key still opens")
		}
		peer.Run("key", "passwd", "--new-password-file", file)
		if _, err := Open(t.Context(), be, OpenOptions{Password: peers.Password}); err == nil {
			t.Error("the old password still opens")
		}
		mine, err := Open(t.Context(), be, OpenOptions{Password: "another"})
		if err != nil {
			t.Fatal(err)
		}
		defer mine.Close()
		// And a key of ours opens for restic.
		if _, err := mine.AddKey(t.Context(), KeyOptions{Password: peers.Password, KeyTime: 1}); err != nil {
			t.Fatal(err)
		}
		peer.Run("snapshots")
	})
	t.Run("unlock", func(t *testing.T) {
		dir, peer := clone(t, home)
		r := openDir(t, dir)
		if err := r.writeLock(t.Context(), &held{mode: Exclusive}); err != nil {
			t.Fatal(err)
		}
		if res := peer.Try("backup", dir); res.Code != 11 || !strings.Contains(res.Stderr, "locked exclusively by PID") {
			t.Errorf("restic goes on under our exclusive lock: %+v", res)
		}
		peer.Run("unlock", "--remove-all")
		peer.Run("snapshots")
	})
}

// mounted mounts the repository and shows where a snapshot is.
func mounted(t *testing.T, peer *peers.Runner, id restic.ID, fn func(root string)) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("this test needs FUSE: %v", err)
		}
		t.Skip(err)
	} else {
		_ = f.Close()
	}
	dir := t.TempDir()
	cmd := peer.Command("mount", dir)
	var out bytes.Buffer
	cmd.Stderr = &out
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := exec.Command("fusermount", "-u", dir).Run(); err != nil {
			_ = cmd.Process.Kill()
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("restic mount: %v\n%s", err, out.String())
		}
	}()
	buf := make([]byte, 4096)
	for text := ""; !strings.Contains(text, "Now serving"); {
		n, err := stdout.Read(buf)
		if text += string(buf[:n]); err != nil {
			t.Fatalf("restic mount: %v\n%s%s", err, text, out.String())
		}
	}
	go func() { // its last words must not block it
		for {
			if _, err := stdout.Read(buf); err != nil {
				return
			}
		}
	}()
	fn(filepath.Join(dir, "ids", id.Short()))
}

// resticMade makes a repository with the real restic: files in all shapes, two snapshots.
func resticMade(t *testing.T, args ...string) (dir string, peer *peers.Runner, files map[string][]byte) {
	t.Helper()
	p := peers.Local(t)
	peer = peers.Restic(t, p)
	src := t.TempDir()
	files = map[string][]byte{"big": noise(7, 5e6), "empty": {}, "a \"quoted\\ näme<>&": []byte("x"), "zeros": make([]byte, 3e6), "sub/deep/file": noise(8, 1000)}
	for name, data := range files {
		path := filepath.Join(src, "vm", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("big", filepath.Join(src, "vm", "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(src, "vm", "sub/deep/file"), filepath.Join(src, "vm", "hard")); err != nil {
		t.Fatal(err)
	}
	files["hard"] = files["sub/deep/file"]
	peer.Dir = src
	peer.Run(append([]string{"init"}, args...)...)
	peer.Run("backup", "vm", "--host", "first", "--tag", "one,two")
	old := files["big"]
	files["big"] = changed(old, 2, 9)
	if err := os.WriteFile(filepath.Join(src, "vm", "big"), files["big"], 0o640); err != nil {
		t.Fatal(err)
	}
	peer.Run("backup", "vm", "--host", "first")
	return p.Location, peer, files
}

// contents reads all files below a tree, with Reader.
func contents(t *testing.T, r *Repository, id restic.ID, at string, out map[string][]byte) {
	t.Helper()
	tree, err := r.LoadTree(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	canonical, err := restic.AppendTree(nil, tree)
	if err != nil || restic.Hash(canonical) != id {
		t.Fatalf("the tree of %s is not spelt as restic spells it: %v\n%s", at, err, canonical)
	}
	for _, n := range tree.Nodes {
		name := strings.TrimPrefix(at+"/"+n.Name, "/")
		switch n.Type {
		case restic.DirNode:
			contents(t, r, *n.Subtree, name, out)
		case restic.FileNode:
			rd, err := r.Reader(t.Context(), n.Content)
			if err != nil {
				t.Fatal(err)
			}
			data := make([]byte, rd.Size())
			if n, err := rd.ReadAt(data, 0); n != len(data) {
				t.Fatalf("%s: %d of %d bytes, %v", name, n, len(data), err)
			}
			out[name] = data
		}
	}
}

func TestWeWorkOnRepositoriesThatResticMade(t *testing.T) {
	for _, version := range []string{"1", "2"} {
		t.Run("version "+version, func(t *testing.T) {
			dir, peer, files := resticMade(t, "--repository-version", version)
			r := openDir(t, dir)
			if fmt.Sprint(r.Config().Version) != version {
				t.Fatalf("version %d", r.Config().Version)
			}
			report := wantClean(t, r)
			if report.Snapshots != 2 || report.PacksRead == 0 {
				t.Errorf("%+v", report)
			}
			all, err := r.Snapshots(t.Context())
			if err != nil || len(all) != 2 || !slices.Equal(all[0].Tags, []string{"one", "two"}) || all[1].Hostname != "first" {
				t.Fatalf("%v, %v", all, err)
			}
			got := make(map[string][]byte)
			contents(t, r, *all[1].Tree, "", got)
			for name, want := range files {
				if !bytes.Equal(got["vm/"+name], want) {
					t.Errorf("%s: %d bytes, want %d", name, len(got["vm/"+name]), len(want))
				}
			}
			if len(got) != len(files) {
				t.Errorf("%d files, want %d", len(got), len(files))
			}
			st, err := r.Stats(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var theirs struct {
				Raw int64 `json:"total_size"`
			}
			if err := json.Unmarshal([]byte(peer.Run("stats", "--mode", "raw-data", "--json")), &theirs); err != nil || theirs.Raw != st.Total.Stored {
				t.Errorf("we count %d bytes, restic %d, %v", st.Total.Stored, theirs.Raw, err)
			}

			// Ours on top of theirs, then prune.
			m := newMachine(3)
			s, err := m.commit(t.Context(), r, "vm", time.Now())
			if err != nil {
				t.Fatal(err)
			}
			peer.Run("check", "--read-data")
			if _, err := r.Forget(t.Context(), ForgetOptions{Policy: restic.Policy{Last: 1}, GroupBy: restic.GroupBy{Host: true}}); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Prune(t.Context(), PruneOptions{MaxUnused: Unused{None: true}}); err != nil {
				t.Fatal(err)
			}
			if out := peer.Run("check", "--read-data"); !strings.Contains(out, "no errors were found") {
				t.Error(out)
			}
			if report := wantClean(t, r); report.UnusedBytes != 0 || report.Snapshots != 2 {
				t.Errorf("%+v", report)
			}
			target := t.TempDir()
			peer.Run("restore", s.ID.String(), "--target", target)
			m.want(t, filepath.Join(target, "vm"))
			// restic finds its own parent again.
			if out := peer.Run("backup", "vm", "--host", "first"); !strings.Contains(out, "using parent snapshot") {
				t.Error(out)
			}
		})
	}
}

// The same packs are kept, rewritten and deleted, whatever may stay unused: what a prune frees depends on how the data lies
// in the packs, not on who prunes.
func TestPrunePlansAsResticDoes(t *testing.T) {
	r, be, peer := onDisk(t)
	r.packSize = minPackSize
	data := noise(1, 120e6)
	for seed := range uint64(3) {
		if _, err := commitFiles(t.Context(), r, "vm", map[string][]byte{"disk": data}); err != nil {
			t.Fatal(err)
		}
		data = changed(data, 9, 1000*(seed+1))
	}
	peer.Run("forget", "--keep-last", "1")
	r = mustOpen(t, be)
	counts := regexp.MustCompile(`to (keep|repack|delete): +(\d+) packs`)
	for limit, unused := range map[string]Unused{"5%": {}, "0": {None: true}, "2M": {Bytes: 2 << 20}, "unlimited": {Unlimited: true}} {
		plan, err := r.Prune(t.Context(), PruneOptions{DryRun: true, MaxUnused: unused})
		if err != nil {
			t.Fatal(err)
		}
		ours := map[string]string{"keep": fmt.Sprint(plan.KeepPacks), "repack": fmt.Sprint(plan.RepackPacks), "delete": fmt.Sprint(plan.RemovePacks)}
		theirs := map[string]string{}
		for _, m := range counts.FindAllStringSubmatch(peer.Run("prune", "--dry-run", "--max-unused", limit, "--verbose=2"), -1) {
			theirs[m[1]] = m[2]
		}
		if !maps.Equal(ours, theirs) {
			t.Errorf("--max-unused %s: we plan %v, restic %v", limit, ours, theirs)
		}
		t.Log(limit, ours)
	}
}

func TestResticPruneAndWeAgreeOnWhatIsUnused(t *testing.T) {
	dir, peer, _ := resticMade(t)
	peer.Run("forget", "--keep-last", "1")
	r := openDir(t, dir)
	plan, err := r.Prune(t.Context(), PruneOptions{DryRun: true, MaxUnused: Unused{None: true}})
	if err != nil {
		t.Fatal(err)
	}
	out := peer.Run("prune", "--dry-run", "--max-unused", "0", "--verbose=2")
	line := ""
	for l := range strings.Lines(out) {
		if strings.HasPrefix(l, "unused:") {
			line = l
		}
	}
	if want := fmt.Sprintf("%d blobs", plan.UnusedBlobs); !strings.Contains(strings.Join(strings.Fields(line), " "), want) || plan.UnusedBlobs == 0 {
		t.Errorf("we find %s unused, restic %s", want, line)
	}
}
