package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/types"
)

// The control interface lets another process play the guest and cause faults. It asks nobody who he is: a lab holds
// nothing worth protecting. {vm} is a name or a managed object id.
//
//	GET    /lab                      machines, disks and snapshots as JSON
//	GET    /lab/{vm}/{key}           the live disk, raw; ranges work
//	PUT    /lab/{vm}/{key}?offset=N  the guest writes the body at byte N
//	POST   /lab/{vm}?...             quiesce=application|filesystem  leaveDelta=N  lie=drop:2|shift:65536|short:65536
//	                                 query=KEY (refuse changed areas)  delay=createSnapshot:5s
//	                                 powercut=1 (change tracking is reset); nothing: all is well again
//	POST   /lab?...                  method=M nth=N times=N do=status:503|reset|lose|truncate|hang|delay:2s
//	                                 expire=1 (every session ends)  cut=1 (connections to the disk server break)
//	                                 free=DATASTORE:BYTES
//	DELETE /lab                      no call goes wrong any more
func (l *Lab) serveControl(mux *http.ServeMux) {
	mux.HandleFunc("GET /lab", l.controlList)
	mux.HandleFunc("GET /lab/{vm}/{key}", l.controlRead)
	mux.HandleFunc("PUT /lab/{vm}/{key}", l.controlWrite)
	mux.HandleFunc("POST /lab/{vm}", l.controlMachine)
	mux.HandleFunc("POST /lab", func(w http.ResponseWriter, r *http.Request) { done(w, l.control(r)) })
	mux.HandleFunc("DELETE /lab", func(w http.ResponseWriter, _ *http.Request) {
		l.ClearFaults()
		done(w, nil)
	})
}

// control obeys POST /lab.
func (l *Lab) control(r *http.Request) error {
	q := r.URL.Query()
	if q.Get("expire") != "" {
		l.ExpireSessions()
	}
	if q.Get("cut") != "" {
		l.NFC().CutAll()
	}
	if v := q.Get("free"); v != "" {
		name, bytes, _ := strings.Cut(v, ":")
		n, err := strconv.ParseInt(bytes, 10, 64)
		if err == nil {
			err = l.SetFreeSpace(name, n)
		}
		if err != nil {
			return err
		}
	}
	if !q.Has("do") {
		return nil
	}
	f := Fault{Method: q.Get("method")}
	var err error
	for k, to := range map[string]*int{"nth": &f.Nth, "times": &f.Times} {
		if v := q.Get(k); v != "" {
			if *to, err = strconv.Atoi(v); err != nil {
				return err
			}
		}
	}
	if f.Do, err = ParseEffect(q.Get("do")); err == nil {
		l.Inject(f)
	}
	return err
}

func done(w http.ResponseWriter, err error) {
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, ErrNoMachine):
		http.Error(w, err.Error(), http.StatusNotFound)
	default:
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

func (l *Lab) controlList(w http.ResponseWriter, _ *http.Request) {
	type machine struct {
		Name, ID  string
		Snapshots int
		Disks     []DiskInfo
	}
	out := []machine{}
	for _, name := range l.Machines() {
		vm, err := l.Lookup(name)
		if err != nil {
			continue // destroyed meanwhile
		}
		disks, err := vm.Disks()
		if err != nil {
			continue
		}
		out = append(out, machine{name, vm.ref.Value, vm.SnapshotCount(), disks})
	}
	w.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	_ = e.Encode(out)
}

// diskOf finds the disk a request names.
func (l *Lab) diskOf(r *http.Request) (vm *VM, d DiskInfo, err error) {
	if vm, err = l.Lookup(r.PathValue("vm")); err != nil {
		return nil, d, err
	}
	disks, err := vm.Disks()
	if err != nil {
		return nil, d, err
	}
	for _, d := range disks {
		if strconv.Itoa(int(d.Key)) == r.PathValue("key") {
			return vm, d, nil
		}
	}
	return nil, d, fmt.Errorf("%s has no disk %s", vm.ref.Value, r.PathValue("key"))
}

type liveReader struct {
	vm  *VM
	key int32
}

func (l liveReader) ReadAt(p []byte, off int64) (int, error) {
	if err := l.vm.Read(l.key, p, off); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (l *Lab) controlRead(w http.ResponseWriter, r *http.Request) {
	vm, d, err := l.diskOf(r)
	if err != nil {
		done(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(liveReader{vm, d.Key}, 0, d.Size))
}

func (l *Lab) controlWrite(w http.ResponseWriter, r *http.Request) {
	vm, d, err := l.diskOf(r)
	if err != nil {
		done(w, err)
		return
	}
	off := int64(0)
	if v := r.URL.Query().Get("offset"); v != "" {
		if off, err = strconv.ParseInt(v, 10, 64); err != nil {
			done(w, err)
			return
		}
	}
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(r.Body, buf)
		if n > 0 {
			if err := vm.Write(d.Key, buf[:n], off); err != nil {
				done(w, err)
				return
			}
			off += int64(n)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			done(w, nil)
			return
		}
		if err != nil {
			done(w, err)
			return
		}
	}
}

// controlMachine obeys POST /lab/{vm}.
func (l *Lab) controlMachine(w http.ResponseWriter, r *http.Request) {
	vm, err := l.Lookup(r.PathValue("vm"))
	if err != nil {
		done(w, err)
		return
	}
	if r.URL.Query().Get("powercut") != "" {
		done(w, vm.PowerCut())
		return
	}
	f, err := machineFaults(r)
	if err == nil {
		err = vm.SetFaults(f)
	}
	done(w, err)
}

// machineFaults reads faults of a machine out of a query.
func machineFaults(r *http.Request) (f MachineFaults, err error) {
	number := func(s string) (n int64) {
		var e error
		if n, e = strconv.ParseInt(s, 10, 64); e != nil && err == nil {
			err = e
		}
		return n
	}
	for k, vs := range r.URL.Query() {
		v := vs[0]
		kind, arg, _ := strings.Cut(v, ":")
		switch k {
		case "quiesce":
			switch v {
			case "application":
				f.Quiesce = &types.ApplicationQuiesceFault{}
			case "filesystem":
				f.Quiesce = &types.FilesystemQuiesceFault{}
			default:
				return f, fmt.Errorf("quiesce=%q: application or filesystem", v)
			}
		case "leaveDelta":
			f.LeaveDelta = int(number(v))
		case "query":
			f.Query = FailQuery(v)
		case "lie":
			n := number(arg)
			switch {
			case kind == "drop" && n > 0:
				f.Query = DropAreas(int(n))
			case kind == "shift":
				f.Query = ShiftAreas(n)
			case kind == "short":
				f.Query = ShortLength(n)
			default:
				return f, fmt.Errorf("lie=%q: drop:N, shift:BYTES or short:BYTES", v)
			}
		case "delay":
			d, e := time.ParseDuration(arg)
			if e != nil {
				return f, e
			}
			f.TaskDelay = map[string]time.Duration{kind: d}
		default:
			return f, fmt.Errorf("unknown fault %q", k)
		}
	}
	return f, err
}

// ParseEffect reads an effect: "status:503", "reset", "lose", "truncate", "hang", "delay:2s".
func ParseEffect(s string) (Effect, error) {
	kind, arg, _ := strings.Cut(s, ":")
	switch kind {
	case "status":
		n, err := strconv.Atoi(arg)
		if err != nil || n < 400 || n > 599 {
			return nil, fmt.Errorf("effect %q: status is 400 to 599", s)
		}
		return HTTPStatus(n), nil
	case "reset":
		return Reset(), nil
	case "lose":
		return LoseAnswer(), nil
	case "truncate":
		return Truncate(), nil
	case "hang":
		return Hang(), nil
	case "delay":
		d, err := time.ParseDuration(arg)
		if err != nil {
			return nil, err
		}
		return Delay(d), nil
	}
	return nil, fmt.Errorf("effect %q: status:CODE, reset, lose, truncate, hang or delay:TIME", s)
}
