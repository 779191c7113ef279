package engine

import (
	"context"

	"github.com/vmkeep/vmkeep/plugin"
)

func unsupported() error {
	return &plugin.Error{Code: plugin.CodeUnsupported, Summary: "not built yet"}
}

func (e *Engine) ListFiles(context.Context, plugin.FileRequest, func(plugin.File) error) error {
	return unsupported()
}
func (e *Engine) ReadFile(context.Context, plugin.FileRequest, func(plugin.Frame) error) error {
	return unsupported()
}
func (e *Engine) TarFiles(context.Context, plugin.FileRequest, func([]byte) error) error {
	return unsupported()
}
