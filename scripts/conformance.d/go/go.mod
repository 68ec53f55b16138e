module client

go 1.21

require github.com/nacos-group/nacos-sdk-go/v2 v2.3.5
