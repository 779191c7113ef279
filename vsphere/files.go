package vsphere

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// folderURL is where the server offers a datastore's file for reading and writing, /folder/<path>?dcPath=&dsName=.
// dc is the inventory path of the data center; names in it stay escaped, as the server wants them.
func (c *Client) folderURL(file, dc string) (*url.URL, error) {
	var p object.DatastorePath
	if !p.FromString(file) || p.Path == "" {
		return nil, &Error{Kind: ErrInvalid, Object: file, Summary: fmt.Sprintf("%q is not a datastore path", file), Remedy: "write it as [datastore] folder/file"}
	}
	u := c.s.soap.URL()
	u.Path = path.Join("/folder", p.Path)
	u.RawQuery = url.Values{"dcPath": {dc}, "dsName": {p.Datastore}}.Encode()
	return u, nil
}

// dataCenter is the inventory path of the machine's data center without the leading slash.
func (v *VM) dataCenter(ctx context.Context) (string, error) {
	if v.machine.dc != "" {
		return v.machine.dc, nil
	}
	t, err := v.c.readTree(ctx)
	if err != nil {
		return "", err
	}
	m, err := v.c.machine(ctx, v.ref(), t)
	return m.dc, err
}

// Download writes a file of the machine, named by its datastore path, to w and returns its length. A missing file is
// [ErrNotFound]. After a failure w may hold the beginning of the file.
func (v *VM) Download(ctx context.Context, file string, w io.Writer) (int64, error) {
	dc, err := v.dataCenter(ctx)
	if err != nil {
		return 0, fmt.Errorf("download %s: %w", file, err)
	}
	u, err := v.c.folderURL(file, dc)
	if err != nil {
		return 0, err
	}
	var n int64
	err = v.c.transfer(ctx, file, func() (*http.Request, error) { return http.NewRequest(http.MethodGet, u.String(), nil) },
		func(res *http.Response) error {
			n, err = io.Copy(w, res.Body)
			if err == nil && res.ContentLength >= 0 && n != res.ContentLength {
				err = io.ErrUnexpectedEOF
			}
			return err
		})
	if err != nil {
		return n, fmt.Errorf("download %s: %w", file, err)
	}
	return n, nil
}

// upload writes a file named by its datastore path.
func (v *VM) upload(ctx context.Context, file string, data []byte) error {
	dc, err := v.dataCenter(ctx)
	if err != nil {
		return fmt.Errorf("upload %s: %w", file, err)
	}
	u, err := v.c.folderURL(file, dc)
	if err != nil {
		return err
	}
	err = v.c.transfer(ctx, file, func() (*http.Request, error) {
		req, err := http.NewRequest(http.MethodPut, u.String(), bytes.NewReader(data))
		if err == nil {
			req.Header.Set("Content-Type", "application/octet-stream")
		}
		return req, err
	}, func(*http.Response) error { return nil })
	if err != nil {
		return fmt.Errorf("upload %s: %w", file, err)
	}
	return nil
}

// transfer makes an HTTP request with the session's cookie; take reads a good answer. Until take has begun, the
// request is repeated as calls are.
func (c *Client) transfer(ctx context.Context, file string, request func() (*http.Request, error), take func(*http.Response) error) error {
	for attempt := 0; ; attempt++ {
		gen, closed := c.s.generation()
		if closed {
			return &Error{Kind: ErrClosed, Summary: "the vSphere client is closed"}
		}
		req, err := request()
		if err != nil {
			return err
		}
		status, begun := 0, false
		err = c.s.soap.Do(ctx, req, func(res *http.Response) error {
			status = res.StatusCode
			if status < 200 || status > 299 {
				return errors.New(res.Status)
			}
			begun = true
			return take(res)
		})
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case begun:
			return err
		case attempt >= 5:
		case status == http.StatusUnauthorized:
			if err := c.s.login(ctx, gen); err != nil {
				return err
			}
			continue
		case status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == 0 && transient(err):
			if err := sleep(ctx, c.s.backoff(attempt)); err != nil {
				return err
			}
			continue
		}
		switch status {
		case http.StatusNotFound:
			return &Error{Kind: ErrNotFound, Object: file, Summary: "no file " + file, Remedy: "check the datastore path"}
		case http.StatusUnauthorized, http.StatusForbidden:
			return &Error{Kind: ErrPermission, Privilege: "Datastore.FileManagement", Object: file, Err: err,
				Summary: "the server refuses access to " + file + ", for which the privileges Datastore.Browse and Datastore.FileManagement are needed",
				Remedy:  "give the account both on the datastore"}
		}
		return err
	}
}

// UploadNVRAM replaces the machine's .nvram, its BIOS settings or UEFI variables. The machine must be powered off.
func (v *VM) UploadNVRAM(ctx context.Context, data []byte) error {
	now, err := v.power(ctx)
	if err != nil {
		return err
	}
	if now != PoweredOff {
		return &Error{Kind: ErrPowerState, Object: v.label(), Summary: fmt.Sprintf("machine %s is %s: its NVRAM is in use", v.label(), now), Remedy: "power it off first"}
	}
	vm, err := v.read(ctx, "config.files.vmPathName", "config.extraConfig", "layoutEx.file")
	if err != nil {
		return err
	}
	name := nvramOf(vm)
	if name == "" {
		// A machine that never ran has no NVRAM yet; the host makes it under the name of the .vmx.
		name = strings.TrimSuffix(vm.Config.Files.VmPathName, path.Ext(vm.Config.Files.VmPathName)) + ".nvram"
	}
	if err := v.upload(ctx, name, data); err != nil {
		return err
	}
	return v.reconfigure(ctx, "set the NVRAM of "+v.label(), types.VirtualMachineConfigSpec{
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "nvram", Value: path.Base(name)}}})
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
