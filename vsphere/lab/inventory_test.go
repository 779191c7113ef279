package lab_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/tags"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"go.uber.org/goleak"

	"github.com/vmkeep/vmkeep/vsphere/lab"
)

func insecure() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
}

func TestInventory(t *testing.T) {
	b := start(t, lab.Options{Machines: []lab.Machine{
		{Name: "a", Folder: "prod/web", Host: "esx1", Pool: "gold", Network: "net1"},
		{Name: "b", Folder: "prod/db", Host: "esx5", Datastore: "ds3"},
		{Name: "a", Folder: "test", Host: "esx3", Off: true},
	}})
	paths := map[string]int{"prod/nothing/*": 0, "prod/web/*": 1, "prod/...": 2, "/dc1/vm/test/a": 1}
	for p, want := range paths {
		vms, err := b.finder.VirtualMachineList(b.ctx, p)
		if _, none := err.(*find.NotFoundError); err != nil && !(none && want == 0) {
			t.Errorf("%s: %v", p, err)
		}
		if len(vms) != want {
			t.Errorf("%s: %d machines, want %d", p, len(vms), want)
		}
	}
	hosts, err := b.finder.HostSystemList(b.ctx, "*")
	if err != nil || len(hosts) != 5 {
		t.Errorf("%d hosts, %v", len(hosts), err)
	}
	for what, list := range map[string]func() (int, error){
		"clusters 2":   func() (int, error) { l, err := b.finder.ClusterComputeResourceList(b.ctx, "*"); return len(l), err },
		"datastores 3": func() (int, error) { l, err := b.finder.DatastoreList(b.ctx, "*"); return len(l), err },
		"pools 2": func() (int, error) {
			l, err := b.finder.ResourcePoolList(b.ctx, "*/Resources/gold")
			return len(l), err
		},
		"networks 2": func() (int, error) { l, err := b.finder.NetworkList(b.ctx, "net*"); return len(l), err },
	} {
		var name string
		var want int
		_, _ = fmt.Sscan(what, &name, &want)
		if n, err := list(); err != nil || n != want {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
	about := b.vim.ServiceContent.About
	if about.ApiType != "VirtualCenter" || about.ApiVersion != "8.0.3.0" || about.InstanceUuid == "" {
		t.Errorf("about %+v", about)
	}
	info := soap.NewClient(b.lab.URL(), false)
	info.SetThumbprint(b.lab.URL().Host, b.lab.Thumbprint())
	if _, err := methodsAbout(b.ctx, info); err != nil {
		t.Errorf("the thumbprint is not the server's: %v", err)
	}

	rc := rest.NewClient(b.vim)
	if err := rc.Login(b.ctx, b.lab.URL().User); err != nil {
		t.Fatal(err)
	}
	tm := tags.NewManager(rc)
	cat, err := tm.CreateCategory(b.ctx, &tags.Category{Name: "backup", Cardinality: "SINGLE"})
	if err != nil {
		t.Fatal(err)
	}
	tag, err := tm.CreateTag(b.ctx, &tags.Tag{Name: "daily", CategoryID: cat})
	if err != nil {
		t.Fatal(err)
	}
	if err := tm.AttachTag(b.ctx, tag, b.vm("b").Reference()); err != nil {
		t.Fatal(err)
	}
	if refs, err := tm.ListAttachedObjects(b.ctx, tag); err != nil || len(refs) != 1 {
		t.Errorf("tagged %v, %v", refs, err)
	}
}

func TestThousandMachines(t *testing.T) {
	var ms []lab.Machine
	for i := range thousand {
		ms = append(ms, lab.Machine{Name: fmt.Sprintf("vm%04d", i), Folder: fmt.Sprintf("team%d", i%7), Off: i%10 == 0,
			Disks: []lab.Disk{{Size: 1 << 40, Datastore: "ds2"}}})
	}
	begin := time.Now()
	b := start(t, lab.Options{Machines: ms})
	took := time.Since(begin)
	t.Logf("%d machines in %s", thousand, took)
	v, err := view.NewManager(b.vim).CreateContainerView(b.ctx, b.vim.ServiceContent.RootFolder, []string{"VirtualMachine"}, true)
	if err != nil {
		t.Fatal(err)
	}
	var vms []mo.VirtualMachine
	if err := v.Retrieve(b.ctx, []string{"VirtualMachine"}, []string{"name", "config.hardware.device"}, &vms); err != nil || len(vms) != thousand {
		t.Fatalf("%d machines, %v", len(vms), err)
	}
	var used int64
	if err := filepath.Walk(b.lab.Dir(), func(p string, st os.FileInfo, err error) error {
		if err == nil && filepath.Ext(p) == ".vmdk" {
			used += st.Size()
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if used > 4*mib {
		t.Errorf("untouched disks have files of %d bytes", used)
	}
}

// Nothing runs on after Close, and the temporary directory is gone.
func TestCloseLeavesNothing(t *testing.T) {
	before := goleak.IgnoreCurrent()
	l, err := lab.Start(t.Context(), lab.Options{Machines: []lab.Machine{oneDisk("web")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Machine("web").SetFaults(lab.MachineFaults{TaskDelay: map[string]time.Duration{"createSnapshot": time.Hour}}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = l.Machine("web").Snapshot("never")
	}()
	for len(l.Machine("web").Snapshots()) == 0 { // until the task runs
		if busy(l) {
			break
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	<-done
	if _, err := os.Stat(l.Dir()); !os.IsNotExist(err) {
		t.Errorf("directory: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	goleak.VerifyNone(t, before)
	if _, err := lab.Start(t.Context(), lab.Options{Machines: []lab.Machine{{Name: "x", Host: "nowhere"}}}); err == nil {
		t.Error("a lab with a machine nowhere started")
	}
}

func busy(l *lab.Lab) bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	return l.Machine("web").Idle(ctx) != nil
}

// Guests write while snapshots come and go: every incremental applied to the last image gives the next.
func TestManyGuestsAtOnce(t *testing.T) {
	var ms []lab.Machine
	for i := range 4 {
		ms = append(ms, lab.Machine{Name: fmt.Sprintf("vm%d", i), Tracking: true, Disks: []lab.Disk{{Size: 4 * mib}, {Size: 2 * mib}}})
	}
	b := start(t, lab.Options{MaxAreas: 3, Machines: ms})
	var guests, backups sync.WaitGroup
	stop := make(chan struct{})
	for i := range ms {
		guests.Add(1)
		go func() {
			defer guests.Done()
			vm := b.lab.Machine(ms[i].Name)
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				for _, key := range []int32{2000, 2001} {
					if err := vm.Write(key, random(uint64(n), 3000), int64(n*7919%(2*mib-3000))); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}()
		backups.Add(1)
		go func() {
			defer backups.Done()
			vm := b.vm(ms[i].Name)
			images, ids := map[int32][]byte{}, map[int32]string{}
			for round := range 5 {
				snap := b.snapshot(vm, "s")
				for _, d := range b.disks(snap) {
					truth := b.link(flat(d).FileName)
					if round == 0 {
						images[d.Key] = truth
					} else {
						set, _, err := b.changed(vm.Reference(), &snap, d, ids[d.Key])
						if err != nil {
							t.Error(err)
							return
						}
						for _, e := range set {
							copy(images[d.Key][e.Off:e.End()], truth[e.Off:e.End()])
						}
						if string(images[d.Key]) != string(truth) {
							t.Errorf("%s round %d disk %d: the incremental is wrong", ms[i].Name, round, d.Key)
						}
					}
					ids[d.Key] = flat(d).ChangeId
				}
				b.remove(snap)
			}
		}()
	}
	backups.Wait()
	close(stop)
	guests.Wait()
}
