package lab

import (
	"os"
	"path/filepath"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Disks without a machine, by datastore path (VirtualDiskManager), and the deletion of files: the simulator knows
// names only, here content and names go together.

// free tells whether nothing uses the disk at p: no running machine, no client, no link on top.
func (s *sim) unused(l *link) types.BaseMethodFault {
	if s.store.held(l) || s.runningWith(l, ref{}) != nil || len(s.store.children(l)) > 0 {
		return &types.FileLocked{FileFault: types.FileFault{File: l.path}}
	}
	return nil
}

// lookup finds the disk at p, known or lying on the datastore.
func (s *sim) lookup(p string) (*link, types.BaseMethodFault) {
	if l := s.store.find(p); l != nil {
		return l, nil
	}
	l, err := s.store.adopt(p)
	if err != nil {
		return nil, &types.FileNotFound{FileFault: types.FileFault{File: p}}
	}
	return l, nil
}

// make creates an empty disk.
func (s *sim) makeDisk(p string, size int64, thin bool) (*link, types.BaseMethodFault) {
	local, err := s.store.local(p)
	if err != nil {
		return nil, &types.InvalidDatastorePath{DatastorePath: p}
	}
	ds, _, _ := splitPath(p)
	if s.freeSpace(ds) <= 0 {
		return nil, &types.NoDiskSpace{FileFault: types.FileFault{File: p}, Datastore: ds}
	}
	if s.exists(p) || s.store.find(p) != nil {
		return nil, &types.FileAlreadyExists{FileFault: types.FileFault{File: p}}
	}
	if err := os.MkdirAll(filepath.Dir(local), 0o700); err != nil {
		return nil, &types.CannotCreateFile{FileFault: types.FileFault{File: p}}
	}
	l, err := s.store.base(p, size, thin)
	if err == nil {
		err = s.store.writeDescriptor(l)
	}
	if err == nil {
		_, err = l.open()
	}
	if err != nil {
		return nil, &types.CannotCreateFile{FileFault: types.FileFault{File: p}}
	}
	return l, nil
}

// CreateVirtualDiskTask answers CreateVirtualDisk_Task.
func (s *sim) CreateVirtualDiskTask(_ *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	return &methods.CreateVirtualDisk_TaskBody{Res: &types.CreateVirtualDisk_TaskResponse{
		Returnval: s.start(req.This, "createVirtualDisk", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			spec, ok := req.Spec.(types.BaseFileBackedVirtualDiskSpec)
			if !ok {
				return nil, &types.InvalidArgument{InvalidProperty: "spec"}
			}
			fb := spec.GetFileBackedVirtualDiskSpec()
			_, f := s.makeDisk(req.Name, fb.CapacityKb*1024, fb.DiskType == string(types.VirtualDiskTypeThin))
			return req.Name, f
		})}}
}

// DeleteVirtualDiskTask answers DeleteVirtualDisk_Task.
func (s *sim) DeleteVirtualDiskTask(_ *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	return &methods.DeleteVirtualDisk_TaskBody{Res: &types.DeleteVirtualDisk_TaskResponse{
		Returnval: s.start(req.This, "deleteVirtualDisk", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			l, f := s.lookup(req.Name)
			if f == nil {
				f = s.unused(l)
			}
			if f != nil {
				return nil, f
			}
			s.store.drop(l)
			return nil, nil
		})}}
}

// CopyVirtualDiskTask answers CopyVirtualDisk_Task.
func (s *sim) CopyVirtualDiskTask(_ *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	return &methods.CopyVirtualDisk_TaskBody{Res: &types.CopyVirtualDisk_TaskResponse{
		Returnval: s.start(req.This, "copyVirtualDisk", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			from, f := s.lookup(req.SourceName)
			if f != nil {
				return nil, f
			}
			if old := s.store.find(req.DestName); old != nil && isTrue(req.Force) && s.unused(old) == nil {
				s.store.drop(old)
			}
			to, f := s.makeDisk(req.DestName, from.size, from.thin)
			if f != nil {
				return nil, f
			}
			if err := copyContent(to, from); err != nil {
				return nil, &types.SystemErrorFault{Reason: err.Error()}
			}
			return nil, nil
		})}}
}

// MoveVirtualDiskTask answers MoveVirtualDisk_Task.
func (s *sim) MoveVirtualDiskTask(_ *simulator.Context, req *types.MoveVirtualDisk_Task) soap.HasFault {
	return &methods.MoveVirtualDisk_TaskBody{Res: &types.MoveVirtualDisk_TaskResponse{
		Returnval: s.start(req.This, "moveVirtualDisk", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			l, f := s.lookup(req.SourceName)
			if f == nil {
				f = s.unused(l)
			}
			if f == nil {
				f = s.moveLink(l, req.DestName)
			}
			return nil, f
		})}}
}

// ExtendVirtualDiskTask answers ExtendVirtualDisk_Task.
func (s *sim) ExtendVirtualDiskTask(_ *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	return &methods.ExtendVirtualDisk_TaskBody{Res: &types.ExtendVirtualDisk_TaskResponse{
		Returnval: s.start(req.This, "extendVirtualDisk", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			l, f := s.lookup(req.Name)
			if f == nil {
				f = s.unused(l)
			}
			if f != nil {
				return nil, f
			}
			if err := l.resize(req.NewCapacityKb * 1024); err != nil {
				return nil, &types.InvalidArgument{InvalidProperty: "newCapacityKb"}
			}
			_ = s.store.writeDescriptor(l)
			return req.Name, nil
		})}}
}

// DeleteDatastoreFileTask answers DeleteDatastoreFile_Task: disks that go with a directory are forgotten, and those of
// running machines do not go.
func (s *sim) DeleteDatastoreFileTask(_ *simulator.Context, req *types.DeleteDatastoreFile_Task) soap.HasFault {
	return &methods.DeleteDatastoreFile_TaskBody{Res: &types.DeleteDatastoreFile_TaskResponse{
		Returnval: s.start(req.This, "deleteFile", func(*simulator.Context) (types.AnyType, types.BaseMethodFault) {
			local, err := s.store.local(req.Name)
			_, file, _ := splitPath(req.Name)
			if err != nil || file == "" {
				return nil, &types.InvalidDatastorePath{DatastorePath: req.Name}
			}
			if _, err := os.Stat(local); err != nil {
				return nil, &types.FileNotFound{FileFault: types.FileFault{File: req.Name}}
			}
			for _, l := range s.store.under(req.Name) {
				if s.store.held(l) || s.runningWith(l, ref{}) != nil {
					return nil, &types.FileLocked{FileFault: types.FileFault{File: l.path}}
				}
			}
			s.store.forgetUnder(req.Name)
			if err := os.RemoveAll(local); err != nil {
				return nil, &types.FileFault{File: req.Name}
			}
			return nil, nil
		})}}
}
