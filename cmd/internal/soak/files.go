package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/backend/location"
	"github.com/vmkeep/vmkeep/repo/restic"
	"github.com/vmkeep/vmkeep/vsphere/lab"
	"github.com/vmkeep/vmkeep/vsphere/lab/guestdisk"
)

// fileServer is a machine whose guest has a file system. Nothing happens to it but that its guest changes a file; its
// points are of files alone, without an image.
type fileServer struct {
	*lab.VM
	dir  string
	rng  *rand.Rand
	data []byte // of the file
}

const (
	fileServerName = "files"
	fileDiskSize   = 64 << 20
	stateFile      = "srv/state"
)

// makeFileServer installs the guest and describes the machine.
func makeFileServer(ctx context.Context, dir string, seed uint64) (*fileServer, lab.Machine, error) {
	f := &fileServer{dir: dir, rng: rand.New(rand.NewPCG(seed, 0))}
	tree := filepath.Join(dir, "tree")
	for name, content := range map[string]string{"etc/fstab": "LABEL=root / ext4 defaults 0 1\n", stateFile: "new"} {
		path := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return nil, lab.Machine{}, err
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return nil, lab.Machine{}, err
		}
	}
	err := guestdisk.Make(ctx, f.image(), fileDiskSize, tree, "root")
	return f, lab.Machine{Name: fileServerName, Disks: []lab.Disk{{Image: f.image()}}}, err
}

// image is the file with the disk as the guest left it.
func (f *fileServer) image() string { return filepath.Join(f.dir, "files.img") }

// change lets the guest write its file anew.
func (f *fileServer) change(ctx context.Context) (err error) {
	f.data = make([]byte, f.rng.IntN(1<<20))
	for i := range f.data {
		f.data[i] = byte(f.rng.Uint32())
	}
	state, next := filepath.Join(f.dir, "state"), f.image()+".next"
	old, err := os.ReadFile(f.image())
	if err == nil {
		err = errors.Join(os.WriteFile(state, f.data, 0o600), os.WriteFile(next, old, 0o600))
	}
	if err == nil {
		err = guestdisk.Edit(ctx, next, []string{"rm /" + stateFile, "write " + state + " /" + stateFile})
	}
	if err != nil {
		return err
	}
	now, err := os.ReadFile(next)
	if err != nil {
		return err
	}
	disks, err := f.Disks()
	if err != nil {
		return err
	}
	err = guestdisk.Difference(bytes.NewReader(old), bytes.NewReader(now), fileDiskSize, func(p []byte, off int64) error { return f.Write(disks[0].Key, p, off) })
	return errors.Join(err, os.Rename(next, f.image()))
}

// backupFiles makes a point of the file server's files.
func (s *soak) backupFiles(ctx context.Context) (*plugin.Point, error) {
	report, err := s.service.Backup(ctx, plugin.BackupRequest{Selection: plugin.Selection{Names: []string{fileServerName}}, Files: &plugin.FileSelection{}, NoImage: true}, nil)
	if err != nil {
		return nil, err
	}
	if e := report.Machines[0].Err; e != nil {
		return nil, e
	}
	return report.Machines[0].Point, nil
}

// compareFiles compares the file in a point, where restic sees it, with what it was.
func (s *soak) compareFiles(ctx context.Context, p plugin.Point) (err error) {
	where, err := location.Parse(s.config.Repository.Location)
	if err != nil {
		return err
	}
	be, err := location.Open(ctx, where, location.Settings{})
	if err != nil {
		return err
	}
	r, err := repo.Open(ctx, be, repo.OpenOptions{Password: password})
	if err != nil {
		return errors.Join(err, be.Close())
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	snapshot, err := r.LoadSnapshot(ctx, p.ID)
	if err != nil {
		return err
	}
	h, next := sha256.New(), snapshot.Tree
	for name := range strings.SplitSeq(fileServerName+"/files/*/"+stateFile, "/") {
		if next == nil {
			return fmt.Errorf("point %.8s of %s has no %s", p.ID, p.Machine, name)
		}
		tree, err := r.LoadTree(ctx, *next)
		if err != nil {
			return err
		}
		next = nil
		for _, n := range tree.Nodes {
			if n.Name != name && (name != "*" || n.Subtree == nil) {
				continue
			}
			next = n.Subtree
			for _, id := range n.Content {
				data, err := r.LoadBlob(ctx, restic.BlobHandle{Type: restic.DataBlob, ID: id})
				if err != nil {
					return err
				}
				_, _ = h.Write(data) // never fails
			}
		}
	}
	if s.stats.files++; hash(h.Sum(nil)) != s.states[p.ID] {
		return fmt.Errorf("DIFFERENCE: point %.8s of %s, the file is not what it was at its snapshot", p.ID, p.Machine)
	}
	return nil
}
