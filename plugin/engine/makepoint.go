package engine

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vmkeep/vmkeep/plugin"
	"github.com/vmkeep/vmkeep/repo"
	"github.com/vmkeep/vmkeep/repo/restic"
)

// What a backup leaves in the repository: the machine's directory, its manifest, and the snapshot document.

// tree stores the machine's directory and the root above it.
func (j *machineBackup) tree(w *repo.Writer, files map[string][]byte) (restic.ID, error) {
	at := j.manifest.Time
	dir := restic.Tree{}
	slices.SortFunc(j.images, func(a, b *diskImage) int { return strings.Compare(a.record.Name, b.record.Name) })
	for _, image := range j.images {
		rec := &image.record
		rec.Read, rec.Reused = image.imaging.read.Load(), image.imaging.reused.Load()
		if n := image.imaging.healed.Load(); n > 0 {
			j.warn(warning(plugin.CodeDamaged, fmt.Sprintf("%d parts of the previous point are damaged and were read anew", n), rec.Name, "check the repository: `vmkeep check --read-data`"))
		}
		parts := restic.Tree{Nodes: make([]restic.Node, len(image.trees))}
		for n, id := range image.trees {
			parts.Nodes[n] = dirNode(partName(n), id, epoch())
		}
		slices.SortFunc(parts.Nodes, func(a, b restic.Node) int { return strings.Compare(a.Name, b.Name) })
		id, err := w.SaveTree(&parts)
		if err != nil {
			return restic.ID{}, err
		}
		dir.Nodes = append(dir.Nodes, dirNode(rec.Name, id, at))
		files[rec.Name+".vmdk"] = descriptor(rec.Name, rec.Capacity, rec.UUID)
		j.manifest.Disks = append(j.manifest.Disks, *rec)
	}
	slices.SortFunc(j.manifest.Disks, func(a, b manifestDisk) int { return strings.Compare(a.Name, b.Name) })
	head, err := j.manifest.encode()
	if err != nil {
		return restic.ID{}, err
	}
	files[manifestName] = head
	for name, data := range files {
		ids, err := w.SaveFile(data)
		if err != nil {
			return restic.ID{}, err
		}
		dir.Nodes = append(dir.Nodes, fileNode(name, ids, int64(len(data)), at))
	}
	if j.files != nil {
		dir.Nodes = append(dir.Nodes, dirNode(filesDir, *j.files, at))
	}
	slices.SortFunc(dir.Nodes, func(a, b restic.Node) int { return strings.Compare(a.Name, b.Name) })
	id, err := w.SaveTree(&dir)
	if err != nil {
		return restic.ID{}, err
	}
	return w.SaveTree(&restic.Tree{Nodes: []restic.Node{dirNode(safeName(j.manifest.Machine.Name), id, at)}})
}

// healedDisks are the uuids of the disks that were read in full.
func (j *machineBackup) healedDisks() []string {
	var out []string
	for _, image := range j.images {
		if !image.record.Incremental {
			out = append(out, image.record.UUID)
		}
	}
	return out
}

// document is the snapshot document that makes the point exist.
func (j *machineBackup) document(tree restic.ID, st repo.Stats, started time.Time, prev *loadedPoint) *restic.Snapshot {
	name := j.manifest.Machine.Name
	doc := &restic.Snapshot{
		Time: j.manifest.Time, Tree: &tree, Paths: []string{"/" + safeName(name)}, Hostname: name, Username: "vmkeep",
		Tags: pointTags(&j.manifest, j.run.req.Tags), ProgramVersion: j.manifest.Tool,
	}
	sum := &restic.Summary{BackupStart: started.UTC(), BackupEnd: time.Now().UTC(), DataBlobs: int(st.DataNew), TreeBlobs: int(st.TreeNew),
		DataAdded: uint64(st.Added), DataAddedPacked: uint64(st.Stored)}
	for _, d := range j.manifest.Disks {
		if d.Skipped != "" {
			continue
		}
		sum.TotalFilesProcessed += uint(partCount(d.Capacity))
		sum.TotalBytesProcessed += uint64(d.Capacity)
		if d.Incremental {
			sum.FilesChanged += uint(partCount(d.Capacity))
		} else {
			sum.FilesNew += uint(partCount(d.Capacity))
		}
	}
	doc.Summary = sum
	if prev != nil && prev.snapshot != nil {
		doc.Parent = &prev.snapshot.ID
	}
	return doc
}

func (j *machineBackup) point(st repo.Stats, spent time.Duration) *plugin.Point {
	p := pointOf(&j.manifest)
	p.Tags = pointTags(&j.manifest, j.run.req.Tags)
	p.Stats.New, p.Stats.Stored, p.Stats.Duration = st.Added, st.Stored, spent
	return p
}
