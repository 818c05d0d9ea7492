-- PostgreSQL's image makes one database by itself, the run store's. It runs this once, on an empty volume.
CREATE DATABASE mlflow;
