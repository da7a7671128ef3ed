pub(crate) async fn serve_feed() {}
