module github.com/ulikunitz/xz

go 1.26.0

require github.com/therootcompany/xz v1.0.1
